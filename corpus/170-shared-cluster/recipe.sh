#!/bin/sh
# Two guest clusters use one host cluster with refcount 1.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
freed=$(host_offset 1)
poke8 "$(l2_entry_offset 1)" "$(peek8 "$(l2_entry_offset 0)")"
set_refcount "$freed" 0
