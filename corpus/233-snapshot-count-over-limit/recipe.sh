#!/bin/sh
# The header counts 65537 snapshots, one more than QEMU allows.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
poke4 60 65537
