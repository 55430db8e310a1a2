#!/bin/sh
# A bitmap table entry points far behind the end of the file.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
set_bits8 "$(bitmap_table_offset 0)" $((1 << 40))
