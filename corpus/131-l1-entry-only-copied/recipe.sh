#!/bin/sh
# An unused L1 entry has only its COPIED bit set; qemu-img reads the header as an L2 table.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
expect "$(peek8 "$(l1_entry_offset 3)")" 0 'L1 entry 3'
poke8 "$(l1_entry_offset 3)" "$COPIED"
