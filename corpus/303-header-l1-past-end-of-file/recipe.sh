#!/bin/sh
# The header's L1 offset lies behind the end of the file: the disk reads as empty.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 40 $((1 << 30))
