#!/bin/sh
# A snapshot entry claims 1032 bytes of extra data, more than QEMU allows.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
poke4 $(($(snapshot_offset 0) + 36)) 1032
