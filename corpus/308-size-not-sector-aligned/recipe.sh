#!/bin/sh
# The virtual size is not a multiple of 512.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 24 $((128 * 1024 - 100))
