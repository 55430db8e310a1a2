#!/bin/sh
# An empty bitmap that is also disabled: no bitmap data at all, and the auto flag is off.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
qemu-img bitmap --add --disable "$image" idle
expect "$(peek4 $(($(bitmap_entry_offset 0) + 12)))" 0 flags
expect "$(peek8 "$(bitmap_table_offset 0)")" 0 'bitmap table entry'
