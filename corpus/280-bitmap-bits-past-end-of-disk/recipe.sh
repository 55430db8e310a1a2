#!/bin/sh
# A bitmap has a bit set behind the end of the disk, where the bits must be zero.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=512 64k
qemu-img bitmap --add -g 1k "$image" tail
io 'write -q -P 1 0 512'
data=$(peek8 "$(bitmap_table_offset 0)")
expect "$(peek1 $((data + 8)))" 0 'bits 64 to 71'
poke1 $((data + 8)) 0x80
