#!/bin/sh
# A guest cluster points at the snapshot table.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
freed=$(host_offset 2)
expect "$(refcount "$freed")" 1 'refcount'
poke8 "$(l2_entry_offset 2)" $((COPIED | $(snapshot_table_offset)))
set_refcount "$freed" 0
