#!/bin/sh
# Guest clusters under different L2 tables use one host cluster with refcount 1.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
freed=$(host_offset "$far")
poke8 "$(l2_entry_offset "$far")" "$(peek8 "$(l2_entry_offset 2)")"
set_refcount "$freed" 0
