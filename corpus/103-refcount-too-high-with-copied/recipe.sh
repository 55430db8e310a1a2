#!/bin/sh
# A cluster with one owner has refcount 2 while its L2 entry says COPIED.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
set_refcount "$(host_offset "$far")" 2
