#!/bin/sh
# A bitmap has the type 2.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
poke1 $(($(bitmap_entry_offset 0) + 16)) 2
