#!/bin/sh
# A snapshot entry whose extra data is longer than anything defined today.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
qemu-img snapshot -c one "$image"
still_dates
at=$(snapshot_offset 0)
expect "$(peek4 $((at + 36)))" 24 'extra data'
copy_bytes $((at + 64)) $((at + 80)) 8
fill $((at + 64)) 16 0x77
poke4 $((at + 36)) 40
