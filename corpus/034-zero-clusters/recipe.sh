#!/bin/sh
# Zero clusters with and without a preallocated host cluster.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
io 'write -q -z 0 512' 'write -q -z -u 512 512' 'write -q -z 5k 1k'
for guest_cluster in 0 10 11; do
    expect $(($(peek8 "$(l2_entry_offset $guest_cluster)") & 1)) 1 "zero flag of guest cluster $guest_cluster"
done
