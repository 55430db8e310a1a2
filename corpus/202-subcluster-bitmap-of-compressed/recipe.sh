#!/bin/sh
# A compressed cluster has subcluster bits.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=16k,extended_l2=on 256k
io 'write -q -c -P 1 0 16k'
poke8 $(($(l2_entry_offset 0) + 8)) 1
