#!/bin/sh
# An L2 entry has the reserved bit 60 set.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
set_bits8 "$(l2_entry_offset "$far")" $((1 << 60))
