#!/bin/sh
# Two bitmaps have the same name.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
qemu-img bitmap --add "$image" aaa
qemu-img bitmap --add "$image" bbb
poke_text $(($(bitmap_entry_offset 1) + 24)) aaa
