#!/bin/sh
# An overlay whose backing file is not there: its own metadata is fine, qemu-img cannot check it.
set -eu
. "$(dirname "$0")/../lib.sh"

qemu-img create -q -f raw base.raw 64k
qemu-img create -q -f qcow2 -o cluster_size=1k -b base.raw -F raw "$image"
io 'write -q -P 1 4k 1k' 'write -q -z 8k 1k'
rm base.raw
