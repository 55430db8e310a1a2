#!/bin/sh
# The bitmap directory's size is smaller than its entries.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
poke8 $(($(extension_offset $BITMAPS) + 16)) $(($(bitmap_directory_size) - 8))
