#!/bin/sh
# The header says that the refcount table has 16385 clusters, one more than the 8 MiB QEMU allows.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke4 56 16385
