#!/bin/sh
# A guest cluster points at the refcount block.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
freed=$(host_offset 3)
poke8 "$(l2_entry_offset 3)" $((COPIED | $(refcount_block_offset 0)))
set_refcount "$freed" 0
