#!/bin/sh
# An unused L1 entry points at the L1 table itself.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 "$(l1_entry_offset 3)" $((COPIED | $(l1_offset)))
