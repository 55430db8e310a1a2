#!/bin/sh
# The header counts one snapshot where there are two: the second's clusters look leaked.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
poke4 60 1
