#!/bin/sh
# The reserved field of the bitmaps extension is not zero.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
poke4 $(($(extension_offset $BITMAPS) + 12)) 1
