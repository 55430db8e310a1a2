#!/bin/sh
# The corrupt bit is set although nothing is wrong any more.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 72 2
