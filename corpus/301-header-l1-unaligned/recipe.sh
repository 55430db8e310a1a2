#!/bin/sh
# The header's L1 offset is not aligned to a cluster.
set -eu
. "$(dirname "$0")/../lib.sh"

plain cluster_size=1k
poke8 40 $(($(l1_offset) + 512))
