#!/bin/sh
# Two persistent bitmaps of different granularity, both with bits set.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
expect "$(peek4 $(($(extension_offset $BITMAPS) + 8)))" 2 'number of bitmaps'
