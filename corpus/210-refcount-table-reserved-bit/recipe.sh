#!/bin/sh
# A refcount table entry has the reserved bit 3 set.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
set_bits8 "$(refcount_table_offset)" 8
