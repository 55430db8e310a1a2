#!/bin/sh
# A refcount table entry points at a guest data cluster instead of the refcount block.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 "$(refcount_table_offset)" "$(host_offset "$far")"
