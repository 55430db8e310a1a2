#!/bin/sh
# Two L1 entries share one L2 table, and every count agrees with that: qemu-img finds nothing.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 "$(l1_entry_offset 3)" "$(peek8 "$(l1_entry_offset 0)")"
for guest_cluster in 0 1 2 3; do
    set_refcount "$(host_offset $guest_cluster)" 2
    clear_bits8 "$(l2_entry_offset $guest_cluster)" "$COPIED"
done
set_refcount "$(l2_offset 0)" 2
clear_bits8 "$(l1_entry_offset 0)" "$COPIED"
clear_bits8 "$(l1_entry_offset 3)" "$COPIED"
