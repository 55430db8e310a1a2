#!/bin/sh
# An active L2 table has refcount 0.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
set_refcount "$(l2_offset "$far")" 0
