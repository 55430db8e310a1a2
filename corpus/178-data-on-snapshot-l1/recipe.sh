#!/bin/sh
# A guest cluster points at the L1 table of a snapshot.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
freed=$(host_offset 2)
expect "$(refcount "$freed")" 1 'refcount'
poke8 "$(l2_entry_offset 2)" $((COPIED | $(snapshot_l1_offset 0)))
set_refcount "$freed" 0
