#!/bin/sh
# The L1 table of a snapshot has refcount 0.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
set_refcount "$(snapshot_l1_offset 0)" 0
