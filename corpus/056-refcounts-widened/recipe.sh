#!/bin/sh
# Refcounts widened from 16 to 64 bits by qemu-img amend, which moves the whole structure.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
qemu-img amend -q -f qcow2 -o refcount_bits=64 "$image"
expect "$(refcount_bits)" 64 'refcount bits'
