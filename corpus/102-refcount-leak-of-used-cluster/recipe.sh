#!/bin/sh
# A cluster shared by three L2 tables has refcount 4: a leak on a cluster in use.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
expect "$(refcount "$(host_offset 0)")" 3 'refcount'
set_refcount "$(host_offset 0)" 4
