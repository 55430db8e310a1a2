#!/bin/sh
# Zstd-compressed clusters (compression type 1 and its incompatible bit).
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=4k,compression_type=zstd 64k
io 'write -q -c -P 1 0 4k' 'write -q -c -P 2 4k 4k' 'write -q -P 4 12k 4k'
expect "$(peek1 104)" 1 'compression type'
expect $(($(incompatible_features) & 8)) 8 'compression type bit'
