#!/bin/sh
# An L2 table was overwritten with the contents of the refcount block.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
copy_bytes "$(refcount_block_offset 0)" "$(l2_offset "$far")" "$(cluster_size)"
