#!/bin/sh
# The bitmap table of a bitmap is not aligned to a cluster.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps cluster_size=1k
poke8 "$(bitmap_entry_offset 0)" $(($(bitmap_table_offset 0) + 512))
