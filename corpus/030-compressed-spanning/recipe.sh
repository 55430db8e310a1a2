#!/bin/sh
# Compressed clusters that hardly shrink: some span two host clusters, and neighbours share a sector.
set -eu
. "$(dirname "$0")/../lib.sh"

packed_noise 6
spanning=0
sharing=0
for guest_cluster in 0 1 2 3 4 5; do
    [ $(($(compressed_offset $guest_cluster) / 1024)) -eq $((($(compressed_end $guest_cluster) - 1) / 1024)) ] ||
        spanning=$((spanning + 1))
    [ $guest_cluster -eq 0 ] ||
        [ "$(compressed_offset $guest_cluster)" -ge "$(compressed_end $((guest_cluster - 1)))" ] ||
        sharing=$((sharing + 1))
done
[ "$spanning" -gt 0 ] || die 'no compressed cluster spans two host clusters'
[ "$sharing" -gt 0 ] || die 'no two compressed clusters share a sector'
