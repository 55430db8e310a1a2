#!/bin/sh
# A compatible feature bit that nobody has defined yet.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 80 $((1 << 40))
