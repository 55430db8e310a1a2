#!/bin/sh
# Two L1 entries share one L2 table; its refcount is 1.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 "$(l1_entry_offset 3)" "$(peek8 "$(l1_entry_offset 0)")"
