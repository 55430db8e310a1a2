#!/bin/sh
# A bitmap has the reserved flag 7 set.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
at=$(($(bitmap_entry_offset 0) + 12))
poke4 "$at" $(($(peek4 "$at") | 128))
