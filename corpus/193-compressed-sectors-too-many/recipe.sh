#!/bin/sh
# A compressed cluster claims more sectors than it has, into the next cluster, which is guest data.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=1k 16k
io 'write -q -c -P 1 0 1k' 'write -q -c -P 2 1k 1k' 'write -q -c -P 3 2k 1k' 'write -q -P 4 3k 1k'
start=$(compressed_offset 0)
next=$((start / 1024 * 1024 + 1024))
poke8 "$(l2_entry_offset 0)" "$(compressed_entry "$start" 2)"
expect "$(compressed_end 0)" $((start / 512 * 512 + 3 * 512)) 'end of the compressed cluster'
[ "$(compressed_end 0)" -gt "$next" ] || die 'the compressed cluster stays in its host cluster'
