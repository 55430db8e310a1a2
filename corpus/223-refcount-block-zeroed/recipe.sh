#!/bin/sh
# The refcount block was overwritten with zeros.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
fill "$(refcount_block_offset 0)" "$(cluster_size)" 0
