#!/bin/sh
# A version 2 overlay with a backing format extension right behind the 72-byte header.
set -eu
. "$(dirname "$0")/../lib.sh"

qemu-img create -q -f raw base.raw 4k
qemu-img create -q -f qcow2 -o cluster_size=512,compat=0.10 -b base.raw -F raw "$image"
io 'write -q -P 1 1k 512'
expect "$(extension_offset 0xe2792aca)" 72 'offset of the extension'
