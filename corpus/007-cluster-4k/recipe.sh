#!/bin/sh
# Clusters of 4 KiB, data behind the first of two L1 entries.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=4k 4M
io 'write -q -P 1 1M 6k'
expect "$(cluster_size)" 4096 'cluster size'
