#!/bin/sh
# A compressed cluster of an image with 512-byte clusters has offset bits above bit 55 set.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=512 32k
io 'write -q -c -P 1 0 512' 'write -q -P 2 512 512'
set_bits8 "$(l2_entry_offset 0)" $((1 << 58))
