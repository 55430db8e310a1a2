#!/bin/sh
# An unused L1 entry points at a guest data cluster (qemu-img check -r all writes into it).
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 "$(l1_entry_offset 3)" $((COPIED | $(host_offset "$far")))
