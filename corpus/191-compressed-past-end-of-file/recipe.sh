#!/bin/sh
# A compressed cluster lies far behind the end of the file.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=1k 16k
io 'write -q -c -P 1 0 1k' 'write -q -c -P 2 1k 1k' 'write -q -c -P 3 2k 1k' 'write -q -P 4 3k 1k'
set_bits8 "$(l2_entry_offset 1)" $((1 << 40))
