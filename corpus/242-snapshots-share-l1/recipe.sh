#!/bin/sh
# Two snapshots name the same L1 table.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
poke8 "$(snapshot_offset 1)" "$(snapshot_l1_offset 0)"
