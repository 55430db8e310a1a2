#!/bin/sh
# Compressed clusters shared with a snapshot, one of them overwritten since.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=1k 16k
io 'write -q -c -P 1 0 1k' 'write -q -c -P 2 1k 1k' 'write -q -c -P 3 2k 1k'
qemu-img snapshot -c packed "$image"
io 'write -q -P 4 1k 1k'
still_dates
expect "$(refcount $(($(compressed_offset 0) / 1024 * 1024)))" 5 'refcount of the shared host cluster'
