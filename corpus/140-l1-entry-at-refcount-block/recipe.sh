#!/bin/sh
# An unused L1 entry points at the refcount block.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 "$(l1_entry_offset 3)" $((COPIED | $(refcount_block_offset 0)))
