#!/bin/sh
# A guest cluster points at the active L1 table.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
freed=$(host_offset 3)
poke8 "$(l2_entry_offset 3)" $((COPIED | $(l1_offset)))
set_refcount "$freed" 0
