#!/bin/sh
# The header points at a snapshot table behind the end of the file.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
poke8 64 $((1 << 30))
