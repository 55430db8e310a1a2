#!/bin/sh
# The backing file name lies inside the header itself.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 8 16
poke4 16 4
