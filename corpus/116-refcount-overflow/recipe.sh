#!/bin/sh
# 1-bit refcounts, and two guest clusters on one host cluster: the count cannot be stored.
set -eu
. "$(dirname "$0")/../lib.sh"

plain refcount_bits=1
freed=$(host_offset 1)
poke8 "$(l2_entry_offset 1)" "$(peek8 "$(l2_entry_offset 0)")"
set_refcount "$freed" 0
