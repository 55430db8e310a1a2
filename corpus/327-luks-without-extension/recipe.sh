#!/bin/sh
# The header says LUKS and there is no pointer to an encryption header.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke4 32 2
