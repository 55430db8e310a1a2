#!/bin/sh
# One L1 entry is zero: its L2 table and that table's data look leaked, and freeing them loses the data.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 "$(l1_entry_offset 1)" 0
