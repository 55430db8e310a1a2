#!/bin/sh
# A refcount table entry points into the middle of its refcount block.
set -eu
. "$(dirname "$0")/../lib.sh"

plain cluster_size=1k
set_bits8 "$(refcount_table_offset)" 512
