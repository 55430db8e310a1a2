#!/bin/sh
# A compressed cluster starts in the middle of another one; every count agrees: qemu-img finds nothing.
set -eu
. "$(dirname "$0")/../lib.sh"

packed_noise 6
start=$(compressed_offset 0)
expect "$(compressed_end 0)" $((start / 512 * 512 + 1024)) 'end of the first compressed cluster'
for host_cluster in $(($(compressed_offset 1) / 1024)) $((($(compressed_end 1) - 1) / 1024)); do
    [ "$host_cluster" = "${last:-}" ] || set_refcount $((host_cluster * 1024)) $(($(refcount $((host_cluster * 1024))) - 1))
    last=$host_cluster
done
poke8 "$(l2_entry_offset 1)" "$(compressed_entry $((start + 100)) 1)"
set_refcount $((start / 1024 * 1024)) $(($(refcount $((start / 1024 * 1024))) + 1))
expect $((($(compressed_end 1) - 1) / 1024)) $((start / 1024)) 'last host cluster of the moved one'
