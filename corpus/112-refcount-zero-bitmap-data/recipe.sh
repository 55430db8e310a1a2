#!/bin/sh
# A cluster of bitmap data has refcount 0.
set -eu
. "$(dirname "$0")/../lib.sh"

with_bitmaps
data=$(peek8 "$(bitmap_table_offset 0)")
expect "$(refcount "$data")" 1 'refcount of the bitmap data'
set_refcount "$data" 0
