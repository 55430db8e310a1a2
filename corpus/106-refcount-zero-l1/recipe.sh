#!/bin/sh
# The active L1 table has refcount 0.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
set_refcount "$(l1_offset)" 0
