#!/bin/sh
# A bitmap is in use and its bitmap table entry has a reserved bit set.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
at=$(($(bitmap_entry_offset 0) + 12))
poke4 "$at" $(($(peek4 "$at") | 1))
set_bits8 "$(bitmap_table_offset 0)" $((1 << 60))
