#!/bin/sh
# The autoclear bit of the bitmaps is set and there is no bitmaps extension.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 88 1
