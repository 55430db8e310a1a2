#!/bin/sh
# The header counts three snapshots where there are two: a phantom follows.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
poke4 60 3
