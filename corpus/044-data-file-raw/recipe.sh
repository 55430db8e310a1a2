#!/bin/sh
# An image beside its external data file, which is a valid raw image by itself.
set -eu
. "$(dirname "$0")/../lib.sh"

rm -f data.raw
create cluster_size=1k,data_file=data.raw,data_file_raw=on 8k
io 'write -q -P 1 0 1k' 'write -q -P 2 4k 1k' 'write -q -z 2k 1k'
expect "$(peek8 88)" 2 'raw external data bit'
