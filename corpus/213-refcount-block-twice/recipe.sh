#!/bin/sh
# An unused refcount table entry repeats the first: one refcount block for two ranges.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
expect "$(peek8 $(($(refcount_table_offset) + 8)))" 0 'refcount table entry 1'
poke8 $(($(refcount_table_offset) + 8)) "$(peek8 "$(refcount_table_offset)")"
