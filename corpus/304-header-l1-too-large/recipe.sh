#!/bin/sh
# The header's L1 size is more than the 32 MiB QEMU allows.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
poke4 36 $((32 * 1024 * 1024 / 8 + 1))
