#!/bin/sh
# A bitmap table entry has the reserved bit 60 set.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
set_bits8 "$(bitmap_table_offset 0)" $((1 << 60))
