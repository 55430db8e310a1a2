#!/bin/sh
# A cluster shared with one snapshot has refcount 1 and COPIED: a write would change the snapshot.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
qemu-img snapshot -c one "$image"
still_dates
# Give L1 entry 0 an L2 table of its own, then lower the count of one cluster under it.
io "$(data 0x99 3)"
expect "$(refcount "$(host_offset 0)")" 2 'refcount'
set_refcount "$(host_offset 0)" 1
set_bits8 "$(l2_entry_offset 0)" "$COPIED"
