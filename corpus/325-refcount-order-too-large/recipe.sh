#!/bin/sh
# The header says refcounts of 2 to the power of 7 bits.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke4 96 7
