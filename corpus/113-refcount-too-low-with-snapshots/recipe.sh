#!/bin/sh
# A cluster shared by two snapshots and the active disk has refcount 2 instead of 3.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
expect "$(refcount "$(host_offset 0)")" 3 'refcount'
set_refcount "$(host_offset 0)" 2
