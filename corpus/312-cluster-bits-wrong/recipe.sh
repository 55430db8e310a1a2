#!/bin/sh
# The header says 10 cluster bits where the image was made with 9.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke4 20 10
