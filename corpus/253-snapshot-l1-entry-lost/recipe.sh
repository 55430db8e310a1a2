#!/bin/sh
# An L1 entry of a snapshot is zero; the active disk does not use that L2 table.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
poke8 "$(snapshot_l1_offset 0)" 0
