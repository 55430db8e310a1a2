#!/bin/sh
# A former overlay: committing its data emptied it, then it was cut from its backing file.
set -eu
. "$(dirname "$0")/../lib.sh"

qemu-img create -q -f qcow2 -o cluster_size=1k base.qcow2 64k
qemu-img create -q -f qcow2 -o cluster_size=1k -b base.qcow2 -F qcow2 "$image"
io 'write -q -P 1 0 4k'
qemu-img commit -q "$image"
qemu-img rebase -q -u -f qcow2 -b '' "$image"
rm base.qcow2
