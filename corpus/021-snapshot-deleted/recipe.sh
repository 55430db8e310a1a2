#!/bin/sh
# The first of two snapshots was deleted again; its clusters are free.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
qemu-img snapshot -d one "$image"
still_dates
expect "$(snapshot_count)" 1 'snapshot count'
