#!/bin/sh
# A compressed cluster's sectors lie on the header; every count agrees: qemu-img finds nothing.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=1k 16k
io 'write -q -c -P 1 0 1k' 'write -q -P 2 1k 1k'
freed=$(($(compressed_offset 0) / 1024 * 1024))
expect "$(refcount "$freed")" 1 'refcount'
poke8 "$(l2_entry_offset 0)" "$(compressed_entry 512 0)"
set_refcount "$freed" 0
set_refcount 0 2
