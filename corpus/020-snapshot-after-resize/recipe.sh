#!/bin/sh
# A snapshot taken before the disk grew: its L1 table is shorter than the active one.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
qemu-img snapshot -c small "$image"
qemu-img resize -q "$image" 256k
io 'write -q -P 0x99 250k 512'
still_dates
expect "$(snapshot_l1_size 0)" 4 'L1 size of the snapshot'
expect "$(l1_size)" 8 'active L1 size'
