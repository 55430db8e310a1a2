#!/bin/sh
# The refcount table entry of the whole image points far behind the end of the file.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
set_bits8 "$(refcount_table_offset)" $((1 << 40))
