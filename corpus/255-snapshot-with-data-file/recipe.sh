#!/bin/sh
# An image with an external data file has an internal snapshot, which is not allowed.
set -eu
. "$(dirname "$0")/../lib.sh"

rm -f data.raw
create cluster_size=1k,data_file=data.raw 8k
io 'write -q -P 1 0 1k'
l1=$(append_cluster)
table=$(append_cluster)
poke8 "$l1" "$(peek8 "$(l1_offset)")"
set_refcount "$l1" 1
set_refcount "$table" 1
set_refcount "$(l2_offset 0)" 2
clear_bits8 "$(l1_entry_offset 0)" "$COPIED"
clear_bits8 "$l1" "$COPIED"
poke8 "$table" "$l1"
poke4 $((table + 8)) 1
poke2 $((table + 12)) 1
poke2 $((table + 14)) 3
poke4 $((table + 16)) 1700000000
poke4 $((table + 36)) 16
poke8 $((table + 48)) 8192
poke_text $((table + 56)) '1one'
poke8 64 "$table"
poke4 60 1
