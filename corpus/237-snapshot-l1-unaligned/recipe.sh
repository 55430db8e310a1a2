#!/bin/sh
# The L1 table of a snapshot is not aligned to a cluster.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots cluster_size=1k
poke8 "$(snapshot_offset 0)" $(($(snapshot_l1_offset 0) + 512))
