#!/bin/sh
# One bit of the magic is wrong: qemu-img takes the file for a raw image.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke1 0 0x53
