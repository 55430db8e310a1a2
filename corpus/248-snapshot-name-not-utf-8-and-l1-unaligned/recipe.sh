#!/bin/sh
# The same name on a snapshot with an unaligned L1 table: qemu-img prints the raw bytes.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots cluster_size=1k
poke_text "$(snapshot_name_offset 0)" '\033[\377'
poke8 "$(snapshot_offset 0)" $(($(snapshot_l1_offset 0) + 512))
