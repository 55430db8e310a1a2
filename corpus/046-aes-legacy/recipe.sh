#!/bin/sh
# An image with the old AES encryption (crypt method 1): no key, no check from qemu-img.
set -eu
. "$(dirname "$0")/../lib.sh"

qemu-img create -q -f qcow2 --object secret,id=key,data=corpus \
    -o cluster_size=1k,encrypt.format=aes,encrypt.key-secret=key "$image" 16k
qemu-io --object secret,id=key,data=corpus -c 'write -q -P 1 0 1k' \
    --image-opts "driver=qcow2,file.filename=$image,encrypt.key-secret=key"
qemu-img check -q --object secret,id=key,data=corpus \
    --image-opts "driver=qcow2,file.filename=$image,encrypt.key-secret=key"
expect "$(peek4 32)" 1 'crypt method'
