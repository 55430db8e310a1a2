#!/bin/sh
# The padding behind the compression type is not zero.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke1 107 1
