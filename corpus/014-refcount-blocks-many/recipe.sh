#!/bin/sh
# 64-bit refcounts and 512-byte clusters: one refcount block covers 32 KiB, so the image needs two.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=512,refcount_bits=64 128k
io 'write -q -P 1 0 36k'
expect "$(refcount_block_index "$(host_offset 71)")" 1 'refcount block of the last cluster'
