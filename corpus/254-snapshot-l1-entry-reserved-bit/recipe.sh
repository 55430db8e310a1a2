#!/bin/sh
# An L1 entry of a snapshot has the reserved bit 3 set.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
set_bits8 "$(snapshot_l1_offset 0)" 8
