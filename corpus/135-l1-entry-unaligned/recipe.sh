#!/bin/sh
# An L1 entry points into the middle of its L2 table.
set -eu
. "$(dirname "$0")/../lib.sh"

plain cluster_size=1k
set_bits8 "$(l1_entry_offset 1)" 512
