#!/bin/sh
# The bytes of a compressed cluster do not decompress (a metadata check cannot see that).
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=1k 16k
io 'write -q -c -P 1 0 1k' 'write -q -c -P 2 1k 1k' 'write -q -c -P 3 2k 1k' 'write -q -P 4 3k 1k'
fill "$(compressed_offset 1)" 8 0xff
