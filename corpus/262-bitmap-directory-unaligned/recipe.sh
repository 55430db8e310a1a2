#!/bin/sh
# The bitmap directory's offset is not aligned to a cluster.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps cluster_size=1k
poke8 $(($(extension_offset $BITMAPS) + 24)) $(($(bitmap_directory_offset) + 512))
