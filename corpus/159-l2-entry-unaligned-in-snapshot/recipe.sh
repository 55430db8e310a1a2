#!/bin/sh
# An L2 entry that only a snapshot uses points half a cluster past the start of its data.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots cluster_size=1k
l2=$(($(peek8 "$(snapshot_l1_offset 0)") & OFFSET_MASK))
[ "$l2" -ne "$(l2_offset 0)" ] || die 'the snapshot shares its L2 table'
expect "$(refcount "$l2")" 1 'refcount of the L2 table of the snapshot'
set_bits8 $((l2 + 8)) 512
