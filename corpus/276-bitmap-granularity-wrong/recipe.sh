#!/bin/sh
# A bitmap's granularity is 2 to the power of 8, less than QEMU supports.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
poke1 $(($(bitmap_entry_offset 0) + 17)) 8
