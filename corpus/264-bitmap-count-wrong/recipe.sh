#!/bin/sh
# The bitmaps extension counts three bitmaps where there are two.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
poke4 $(($(extension_offset $BITMAPS) + 8)) 3
