#!/bin/sh
# The refcount table has refcount 0.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
set_refcount "$(refcount_table_offset)" 0
