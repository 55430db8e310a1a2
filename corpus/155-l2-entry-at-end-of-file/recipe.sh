#!/bin/sh
# An L2 entry points at the first cluster behind the end of the file.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
freed=$(host_offset "$far")
poke8 "$(l2_entry_offset "$far")" $((COPIED | $(file_length)))
set_refcount "$freed" 0
