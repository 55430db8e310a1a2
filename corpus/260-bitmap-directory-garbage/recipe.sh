#!/bin/sh
# The bitmap directory was overwritten with the bytes 0xa5.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
fill "$(bitmap_directory_offset)" "$(bitmap_directory_size)" 0xa5
