#!/bin/sh
# The raw external data bit is set without an external data file.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 88 2
