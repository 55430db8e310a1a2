#!/bin/sh
# An L1 table of 128 entries, which is two clusters of 512 bytes; data behind the first and the last entry.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=512 4M
io 'write -q -P 1 0 1k' 'write -q -P 2 4095k 1k'
expect $(($(l1_size) * 8)) $((2 * $(cluster_size))) 'L1 table'
