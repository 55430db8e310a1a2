#!/bin/sh
# A snapshot's id is empty.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
qemu-img snapshot -c one "$image"
still_dates
at=$(snapshot_offset 0)
expect "$(peek2 $((at + 12)))" 1 'id length'
copy_bytes "$(snapshot_name_offset 0)" "$(snapshot_id_offset 0)" 3
poke2 $((at + 12)) 0
