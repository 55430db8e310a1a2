#!/bin/sh
# A bitmap was added, filled and removed: no extension is left.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
qemu-img bitmap --remove "$image" first
qemu-img bitmap --remove "$image" second
expect "$(peek8 88)" 0 'autoclear features'
