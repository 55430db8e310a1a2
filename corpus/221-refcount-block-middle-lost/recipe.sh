#!/bin/sh
# The second of two refcount table entries is zero: the refcounts of one range read as 0.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=512,refcount_bits=64 128k
io 'write -q -P 1 0 36k'
poke8 $(($(refcount_table_offset) + 8)) 0
