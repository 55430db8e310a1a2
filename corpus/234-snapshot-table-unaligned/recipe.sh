#!/bin/sh
# The snapshot table's offset is not aligned to a cluster.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots cluster_size=1k
poke8 64 $(($(snapshot_table_offset) + 512))
