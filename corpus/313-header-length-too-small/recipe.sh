#!/bin/sh
# The header says that it is 96 bytes long.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke4 100 96
