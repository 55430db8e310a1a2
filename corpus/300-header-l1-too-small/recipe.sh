#!/bin/sh
# The header's L1 size is too small for the virtual size.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke4 36 3
