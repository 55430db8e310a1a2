#!/bin/sh
# A header extension says that it is longer than the first cluster.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
add_extension 0x71665343 'short'
poke4 $(($(extension_offset 0x71665343) + 4)) 4096
