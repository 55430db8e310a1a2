#!/bin/sh
# An active L1 entry says COPIED although its L2 table is shared with the snapshots.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
expect "$(refcount "$(l2_offset "$far")")" 3 'refcount'
set_bits8 "$(l1_entry_offset 1)" "$COPIED"
