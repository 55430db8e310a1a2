#!/bin/sh
# An L2 table and its data are missing from the end of the file.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
truncate -s "$(l2_offset "$farther")" "$image"
