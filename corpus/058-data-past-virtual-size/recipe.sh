#!/bin/sh
# The header says a smaller size than the L2 tables describe: data lies beyond the end of the disk.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 24 $((farther * $(cluster_size)))
