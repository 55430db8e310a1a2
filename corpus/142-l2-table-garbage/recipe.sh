#!/bin/sh
# An L2 table was overwritten with the bytes 0xa5.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
fill "$(l2_offset "$far")" "$(cluster_size)" 0xa5
