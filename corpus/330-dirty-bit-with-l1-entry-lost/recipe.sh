#!/bin/sh
# The dirty bit is set and an L1 entry is lost: the next writer to open the image frees its data.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 "$(l1_entry_offset 1)" 0
poke8 72 1
