#!/bin/sh
# Two snapshots have the same id.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
poke1 "$(snapshot_id_offset 1)" "$(peek1 "$(snapshot_id_offset 0)")"
