#!/bin/sh
# Two internal snapshots and an active disk that each differ from the others in one cluster or more.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
expect "$(snapshot_count)" 2 'snapshot count'
expect "$(refcount "$(host_offset 0)")" 3 'refcount of guest cluster 0, shared by all three'
expect "$(refcount "$(host_offset 1)")" 2 'refcount of guest cluster 1'
expect "$(refcount "$(host_offset 2)")" 1 'refcount of guest cluster 2'
