#!/bin/sh
# Two snapshots have the same name.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
copy_bytes "$(snapshot_name_offset 0)" "$(snapshot_name_offset 1)" 3
