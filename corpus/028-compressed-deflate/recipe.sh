#!/bin/sh
# Deflate-compressed clusters, several of them in one host cluster.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=4k 64k
io 'write -q -c -P 1 0 4k' 'write -q -c -P 2 4k 4k' 'write -q -c -P 3 8k 4k' 'write -q -P 4 12k 4k'
expect $(($(compressed_offset 1) / 4096)) $(($(compressed_offset 0) / 4096)) 'host cluster of guest cluster 1'
