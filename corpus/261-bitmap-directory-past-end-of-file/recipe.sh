#!/bin/sh
# The bitmap directory lies behind the end of the file.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
poke8 $(($(extension_offset $BITMAPS) + 24)) $((1 << 30))
