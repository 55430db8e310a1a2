#!/bin/sh
# The header says 200 cluster bits.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke4 20 200
