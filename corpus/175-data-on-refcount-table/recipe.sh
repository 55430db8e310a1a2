#!/bin/sh
# A guest cluster points at the refcount table.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
freed=$(host_offset 3)
poke8 "$(l2_entry_offset 3)" $((COPIED | $(refcount_table_offset)))
set_refcount "$freed" 0
