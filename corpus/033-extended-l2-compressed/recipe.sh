#!/bin/sh
# Extended L2 entries with a compressed cluster and a zero cluster.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=16k,extended_l2=on 256k
io 'write -q -c -P 1 0 16k' 'write -q -z 16k 16k'
expect "$(peek8 $(($(l2_entry_offset 0) + 8)))" 0 'subcluster bitmap of the compressed cluster'
