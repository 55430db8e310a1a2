#!/bin/sh
# A guest cluster points at a bitmap table.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
freed=$(host_offset 3)
poke8 "$(l2_entry_offset 3)" $((COPIED | $(bitmap_table_offset 0)))
set_refcount "$freed" 0
