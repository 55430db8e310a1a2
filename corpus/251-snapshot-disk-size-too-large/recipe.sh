#!/bin/sh
# A snapshot's disk is larger than its L1 table can describe.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
poke8 $(($(snapshot_offset 0) + 48)) $((1 << 40))
