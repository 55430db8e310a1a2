#!/bin/sh
# An L2 entry lacks COPIED although its cluster has refcount 1.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
clear_bits8 "$(l2_entry_offset "$far")" "$COPIED"
