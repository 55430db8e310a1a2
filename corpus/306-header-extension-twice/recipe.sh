#!/bin/sh
# The bitmaps extension appears twice.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
at=$(extension_offset 0)
copy_bytes "$(extension_offset $BITMAPS)" "$at" 32
poke8 $((at + 32)) 0
