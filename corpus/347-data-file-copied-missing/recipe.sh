#!/bin/sh
# An image with an external data file has an L2 entry without COPIED.
set -eu
. "$(dirname "$0")/../lib.sh"

rm -f data.raw
create cluster_size=1k,data_file=data.raw 8k
io 'write -q -P 1 0 1k' 'write -q -P 2 4k 1k'
clear_bits8 "$(l2_entry_offset 4)" "$COPIED"
