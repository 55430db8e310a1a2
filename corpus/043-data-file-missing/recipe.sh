#!/bin/sh
# An image with an external data file that is not there.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=1k,data_file=data.raw 8k
io 'write -q -P 1 0 1k' 'write -q -P 2 4k 1k'
rm data.raw
expect $(($(incompatible_features) & 4)) 4 'external data file bit'
