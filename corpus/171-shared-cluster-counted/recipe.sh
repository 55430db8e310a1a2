#!/bin/sh
# Two guest clusters use one host cluster with refcount 2: qemu-img finds nothing.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
freed=$(host_offset 1)
clear_bits8 "$(l2_entry_offset 0)" "$COPIED"
poke8 "$(l2_entry_offset 1)" "$(peek8 "$(l2_entry_offset 0)")"
set_refcount "$freed" 0
set_refcount "$(host_offset 0)" 2
