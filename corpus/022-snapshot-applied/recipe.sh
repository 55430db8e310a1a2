#!/bin/sh
# The disk was reverted to its snapshot: both share every L2 table and cluster.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
qemu-img snapshot -c one "$image"
io "$(data 0x66 0 4)"
qemu-img snapshot -a one "$image"
still_dates
