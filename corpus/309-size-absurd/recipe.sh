#!/bin/sh
# The virtual size is larger than any L1 table can describe.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 24 $((1 << 62))
