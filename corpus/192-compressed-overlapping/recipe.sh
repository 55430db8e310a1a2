#!/bin/sh
# Two compressed clusters name the same bytes; every count agrees: qemu-img finds nothing.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=1k 16k
io 'write -q -c -P 1 0 1k' 'write -q -c -P 2 1k 1k' 'write -q -c -P 3 2k 1k' 'write -q -P 4 3k 1k'
poke8 "$(l2_entry_offset 1)" "$(peek8 "$(l2_entry_offset 0)")"
