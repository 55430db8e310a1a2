#!/bin/sh
# A bitmap whose only table entry says all ones without a cluster.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
qemu-img bitmap --add --disable "$image" full
table=$(bitmap_table_offset 0)
expect "$(peek8 "$table")" 0 'bitmap table entry'
poke8 "$table" 1
