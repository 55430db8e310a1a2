#!/bin/sh
# A bitmap table has more entries than the bitmap needs.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
poke4 $(($(bitmap_entry_offset 0) + 8)) 2
