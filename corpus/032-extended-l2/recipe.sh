#!/bin/sh
# Extended L2 entries: allocated, zero and untouched subclusters in one cluster, and a cluster of zeros.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=16k,extended_l2=on 256k
io 'write -q -P 1 0 512' 'write -q -P 2 1k 1k' 'write -q -z 4k 2k' 'write -q -z 16k 16k'
expect "$(peek8 $(($(l2_entry_offset 0) + 8)))" $(((0xf00 << 32) | 0xd)) 'subcluster bitmap'
expect "$(peek8 $(($(l2_entry_offset 1) + 8)))" $((0xffffffff << 32)) 'subcluster bitmap of the zero cluster'
