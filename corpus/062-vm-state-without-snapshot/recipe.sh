#!/bin/sh
# VM state in the active L1 table, behind the end of the disk, and no snapshot that explains it.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=512 32k
io 'write -q -P 1 0 1k' 'write -q -b -P 0x5a 0 1k'
expect "$(l1_size)" 2 'L1 size'
