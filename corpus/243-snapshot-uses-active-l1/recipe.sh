#!/bin/sh
# A snapshot names the active L1 table as its own.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
poke8 "$(snapshot_offset 1)" "$(l1_offset)"
