#!/bin/sh
# An L1 entry points far behind the end of the file.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
set_bits8 "$(l1_entry_offset 1)" $((1 << 40))
