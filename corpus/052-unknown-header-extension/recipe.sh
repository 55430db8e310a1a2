#!/bin/sh
# A header extension of a type that nobody has defined yet.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
add_extension 0x71665343 'keep me, I am from the future'
