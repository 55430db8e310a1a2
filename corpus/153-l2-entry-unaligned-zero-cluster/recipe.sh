#!/bin/sh
# A preallocated zero cluster has an unaligned host offset.
set -eu
. "$(dirname "$0")/../lib.sh"

plain cluster_size=1k
io "write -q -z $((far * 1024)) 1k"
expect $(($(peek8 "$(l2_entry_offset "$far")") & 1)) 1 'zero flag'
set_bits8 "$(l2_entry_offset "$far")" 512
