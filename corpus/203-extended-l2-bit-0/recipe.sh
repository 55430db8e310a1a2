#!/bin/sh
# An extended L2 entry has bit 0 set, which is reserved there.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=16k,extended_l2=on 256k
io 'write -q -P 1 0 512' 'write -q -z 4k 2k'
set_bits8 "$(l2_entry_offset 0)" 1
