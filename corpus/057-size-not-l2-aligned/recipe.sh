#!/bin/sh
# The disk shrank to less than its one L2 table describes; the other L1 entries are empty.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
qemu-img resize -q --shrink "$image" 30k
expect "$(l1_size)" 4 'L1 size'
[ "$(peek8 24)" -lt $((far * $(cluster_size))) ] || die 'the disk is not smaller'
