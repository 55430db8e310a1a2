#!/bin/sh
# Two bitmaps use the same cluster of bitmap data.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
freed=$(peek8 "$(bitmap_table_offset 1)")
poke8 "$(bitmap_table_offset 1)" "$(peek8 "$(bitmap_table_offset 0)")"
set_refcount "$freed" 0
