#!/bin/sh
# The bitmaps extension is there and its autoclear bit is off, as after a writer that knows no bitmaps.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
expect "$(peek8 88)" 1 'autoclear features'
poke8 88 0
