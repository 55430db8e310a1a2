#!/bin/sh
# The header's L1 offset points at a guest data cluster.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke8 40 "$(host_offset "$far")"
