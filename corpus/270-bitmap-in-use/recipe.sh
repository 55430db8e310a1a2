#!/bin/sh
# A writer was killed while it had the bitmaps: both are marked as in use, with outdated contents.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
io_crash "$(data 0x44 3)" flush
expect $(($(peek4 $(($(bitmap_entry_offset 0) + 12))) & 1)) 1 'in-use flag'
