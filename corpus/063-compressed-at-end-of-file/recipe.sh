#!/bin/sh
# The last compressed cluster's only sector is not complete: the file ends in the middle of it.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=1k 16k
io 'write -q -c -P 1 0 1k'
[ "$(compressed_end 0)" -gt "$(file_length)" ] || die 'the sector is complete'
