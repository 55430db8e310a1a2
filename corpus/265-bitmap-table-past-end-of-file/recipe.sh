#!/bin/sh
# The bitmap table of a bitmap lies behind the end of the file.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
set_bits8 "$(bitmap_entry_offset 0)" $((1 << 30))
