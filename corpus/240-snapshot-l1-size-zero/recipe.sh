#!/bin/sh
# The L1 table of a snapshot has no entries although its disk size is not zero.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
poke4 $(($(snapshot_offset 0) + 8)) 0
