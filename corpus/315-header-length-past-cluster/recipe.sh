#!/bin/sh
# The header says that it is longer than a cluster.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke4 100 2048
