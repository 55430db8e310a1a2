#!/bin/sh
# A guest cluster lies behind the end of the external data file.
set -eu
. "$(dirname "$0")/../lib.sh"

rm -f data.raw
create cluster_size=1k,data_file=data.raw 8k
io 'write -q -P 1 0 1k' 'write -q -P 2 4k 1k'
truncate -s 2048 data.raw
