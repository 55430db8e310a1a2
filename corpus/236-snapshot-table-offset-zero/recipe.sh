#!/bin/sh
# The header counts two snapshots and gives the snapshot table the offset 0, which is the header.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
poke8 64 0
