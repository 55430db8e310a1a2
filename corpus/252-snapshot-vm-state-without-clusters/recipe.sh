#!/bin/sh
# A snapshot claims VM state that its L1 table has no room for.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
poke8 $(($(snapshot_offset 0) + 40)) 4096
