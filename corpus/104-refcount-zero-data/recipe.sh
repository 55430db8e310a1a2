#!/bin/sh
# A guest data cluster has refcount 0: the next allocation would take it.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
set_refcount "$(host_offset "$far")" 0
