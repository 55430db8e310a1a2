#!/bin/sh
# An unused L2 entry has only its COPIED bit set.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
expect "$(peek8 "$(l2_entry_offset 5)")" 0 'L2 entry 5'
poke8 "$(l2_entry_offset 5)" "$COPIED"
