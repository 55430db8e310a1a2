#!/bin/sh
# An L1 entry has the reserved bit 58 set.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
set_bits8 "$(l1_entry_offset 1)" $((1 << 58))
