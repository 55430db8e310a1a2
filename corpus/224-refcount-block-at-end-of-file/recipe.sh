#!/bin/sh
# An unused refcount table entry points at the first cluster behind the end of the file.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
expect "$(peek8 $(($(refcount_table_offset) + 8)))" 0 'refcount table entry 1'
poke8 $(($(refcount_table_offset) + 8)) "$(file_length)"
