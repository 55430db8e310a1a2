#!/bin/sh
# Persistent bitmaps and internal snapshots in one image (qemu-img check -r loses the snapshots).
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
qemu-img bitmap --add "$image" backup
io "$(data 0x23 3)"
still_dates
