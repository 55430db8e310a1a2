#!/bin/sh
# qemu-img shrank a disk whose L1 table also held VM state: the VM state itself leaked.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=512 64k
io 'write -q -P 1 0 1k' 'write -q -b -P 0x5a 0 1k'
leaked=$(host_offset 128)
qemu-img resize -q --shrink "$image" 32k
expect "$(refcount "$leaked")" 1 'refcount of the leaked VM state'
