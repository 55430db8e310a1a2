#!/bin/sh
# An L1 entry lacks COPIED although its L2 table has refcount 1.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
clear_bits8 "$(l1_entry_offset 1)" "$COPIED"
