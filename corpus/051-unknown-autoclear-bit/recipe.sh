#!/bin/sh
# An autoclear feature bit that nobody has defined yet.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 88 $((1 << 5))
