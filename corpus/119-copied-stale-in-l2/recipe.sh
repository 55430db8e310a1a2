#!/bin/sh
# An L2 entry says COPIED although its cluster is shared with the snapshots.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
expect "$(refcount "$(host_offset 0)")" 3 'refcount'
set_bits8 "$(l2_entry_offset 0)" "$COPIED"
