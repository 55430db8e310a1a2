#!/bin/sh
# The snapshot table has refcount 0.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
set_refcount "$(snapshot_table_offset)" 0
