#!/bin/sh
# Three compressed clusters share a host cluster whose refcount is 2.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=1k 16k
io 'write -q -c -P 1 0 1k' 'write -q -c -P 2 1k 1k' 'write -q -c -P 3 2k 1k' 'write -q -P 4 3k 1k'
shared=$(($(compressed_offset 0) / 1024 * 1024))
expect "$(refcount "$shared")" 3 'refcount'
set_refcount "$shared" 2
