#!/bin/sh
# A version 3 snapshot entry has no extra data.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
qemu-img snapshot -c one "$image"
still_dates
at=$(snapshot_offset 0)
expect "$(peek4 $((at + 36)))" 24 'extra data'
copy_bytes $((at + 64)) $((at + 40)) 4
fill $((at + 44)) 24 0
poke4 $((at + 36)) 0
