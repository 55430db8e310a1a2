#!/bin/sh
# An L1 entry has kept COPIED and lost its offset.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 "$(l1_entry_offset 1)" "$COPIED"
