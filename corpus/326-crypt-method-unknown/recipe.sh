#!/bin/sh
# The header says crypt method 3.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke4 32 3
