#!/bin/sh
# The bitmaps extension has 16 bytes instead of 24.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
poke4 $(($(extension_offset $BITMAPS) + 4)) 16
