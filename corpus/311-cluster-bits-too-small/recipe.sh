#!/bin/sh
# The header says 8 cluster bits, that is clusters of 256 bytes.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke4 20 8
