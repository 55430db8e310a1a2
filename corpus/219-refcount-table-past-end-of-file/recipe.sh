#!/bin/sh
# The header points at a refcount table behind the end of the file.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 48 $((1 << 30))
