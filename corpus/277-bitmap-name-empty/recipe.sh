#!/bin/sh
# A bitmap has a name of length 0.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
poke2 $(($(bitmap_entry_offset 0) + 18)) 0
