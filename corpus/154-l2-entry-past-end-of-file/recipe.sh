#!/bin/sh
# An L2 entry points far behind the end of the file.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
set_bits8 "$(l2_entry_offset "$far")" $((1 << 40))
