#!/bin/sh
# The header says version 4.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke4 4 4
