#!/bin/sh
# An L2 entry points half a cluster past the start of its data.
set -eu
. "$(dirname "$0")/../lib.sh"

plain cluster_size=1k
set_bits8 "$(l2_entry_offset "$far")" 512
