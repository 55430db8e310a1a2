#!/bin/sh
# The header says that the refcount table has 0 clusters.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke4 56 0
