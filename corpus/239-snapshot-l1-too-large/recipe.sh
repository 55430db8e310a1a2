#!/bin/sh
# The L1 table of a snapshot has more entries than the 32 MiB QEMU allows.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
poke4 $(($(snapshot_offset 0) + 8)) $((32 * 1024 * 1024 / 8 + 1))
