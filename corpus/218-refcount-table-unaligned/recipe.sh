#!/bin/sh
# The refcount table's offset is not aligned to a cluster.
set -eu
. "$(dirname "$0")/../lib.sh"

plain cluster_size=1k
poke8 48 $(($(refcount_table_offset) + 512))
