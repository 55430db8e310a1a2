#!/bin/sh
# A snapshot with VM state, and VM state beyond the end of the virtual disk in the active L1 table.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=512 32k
io 'write -q -P 1 0 1k' 'write -q -b -P 0x5a 0 1536'
qemu-img snapshot -c running "$image"
# qemu-img stores no VM state size; state it as a VMM would: in the extra data, the old field zero.
at=$(snapshot_offset 0)
poke8 $((at + 40)) 1536
still_dates
expect "$(l1_size)" 2 'L1 size'
