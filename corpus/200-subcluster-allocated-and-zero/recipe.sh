#!/bin/sh
# A subcluster is marked both as allocated and as reading zeros.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=16k,extended_l2=on 256k
io 'write -q -P 1 0 512' 'write -q -z 4k 2k'
set_bits8 $(($(l2_entry_offset 0) + 8)) $((1 << 32))
