#!/bin/sh
# An overlay beside its backing file.
set -eu
. "$(dirname "$0")/../lib.sh"

qemu-img create -q -f raw base.raw 8k
qemu-img create -q -f qcow2 -o cluster_size=1k -b base.raw -F raw "$image"
io 'write -q -P 1 4k 512'
