#!/bin/sh
# A guest cluster points at an L2 table.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
freed=$(host_offset 3)
poke8 "$(l2_entry_offset 3)" $((COPIED | $(l2_offset "$far")))
set_refcount "$freed" 0
