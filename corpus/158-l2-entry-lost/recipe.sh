#!/bin/sh
# One L2 entry is zero: its data cluster looks leaked.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 "$(l2_entry_offset 2)" 0
