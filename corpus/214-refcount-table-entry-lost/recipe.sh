#!/bin/sh
# The refcount table entry of the whole image is zero: every refcount reads as 0.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 "$(refcount_table_offset)" 0
