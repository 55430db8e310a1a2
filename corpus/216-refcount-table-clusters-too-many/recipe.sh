#!/bin/sh
# The header says that the refcount table has 2 clusters, of which the second is the refcount block.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke4 56 2
