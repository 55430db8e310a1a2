#!/bin/sh
# The L1 table of a snapshot lies far behind the end of the file.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
set_bits8 "$(snapshot_offset 0)" $((1 << 40))
