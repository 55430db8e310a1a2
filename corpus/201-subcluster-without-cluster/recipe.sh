#!/bin/sh
# Subclusters are marked as allocated in an L2 entry without a host cluster.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=16k,extended_l2=on 256k
io 'write -q -P 1 0 512' 'write -q -z 4k 2k'
expect "$(peek8 "$(l2_entry_offset 3)")" 0 'L2 entry 3'
poke8 $(($(l2_entry_offset 3) + 8)) 5
