#!/bin/sh
# A bitmap with extra data marked compatible: legal, and qemu-img refuses the whole image.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
qemu-img bitmap --add --disable "$image" annotated
at=$(bitmap_entry_offset 0)
expect "$(peek2 $((at + 18)))" 9 'name length'
copy_bytes $((at + 24)) $((at + 32)) 16
poke_text $((at + 24)) 'qfsck***'
poke4 $((at + 12)) 4
poke4 $((at + 20)) 8
poke8 $(($(extension_offset $BITMAPS) + 16)) $((24 + 8 + 16))
