#!/bin/sh
# A version 2 snapshot entry without any extra data, as old writers left them.
set -eu
. "$(dirname "$0")/../lib.sh"

plain compat=0.10
qemu-img snapshot -c one "$image"
still_dates
# The entry QEMU writes has 24 bytes of extra data; drop them and move id and name up.
at=$(snapshot_offset 0)
expect "$(peek4 $((at + 36)))" 24 'extra data'
copy_bytes $((at + 64)) $((at + 40)) 8
fill $((at + 48)) 24 0
poke4 $((at + 36)) 0
