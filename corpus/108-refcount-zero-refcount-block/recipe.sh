#!/bin/sh
# The only refcount block has refcount 0.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
set_refcount "$(refcount_block_offset 0)" 0
