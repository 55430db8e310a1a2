#!/bin/sh
# An incompatible feature bit that nobody has defined yet.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 72 $((1 << 9))
