#!/bin/sh
# The L1 table of a snapshot has the offset 0, which is the header.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
poke8 "$(snapshot_offset 0)" 0
