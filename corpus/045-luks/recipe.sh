#!/bin/sh
# A LUKS-encrypted image: qemu-img cannot check it without the key.
set -eu
. "$(dirname "$0")/../lib.sh"

# The key is "corpus". AES-128 in CBC mode keeps the eight key slots small.
qemu-img create -q -f qcow2 --object secret,id=key,data=corpus -o cluster_size=4k,encrypt.format=luks \
    -o encrypt.key-secret=key,encrypt.iter-time=10,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc \
    -o encrypt.ivgen-alg=plain64 "$image" 64k
qemu-io --object secret,id=key,data=corpus -c 'write -q -P 1 0 4k' -c 'write -q -P 2 60k 4k' \
    --image-opts "driver=qcow2,file.filename=$image,encrypt.key-secret=key"
qemu-img check -q --object secret,id=key,data=corpus \
    --image-opts "driver=qcow2,file.filename=$image,encrypt.key-secret=key"
expect "$(peek4 32)" 2 'crypt method'
