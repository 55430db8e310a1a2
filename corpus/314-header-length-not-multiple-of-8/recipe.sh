#!/bin/sh
# The header says that it is 109 bytes long, which cuts into the padding.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
expect "$(header_length)" 112 'header length'
poke4 100 109
