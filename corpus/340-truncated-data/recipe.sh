#!/bin/sh
# The last data cluster is missing from the end of the file.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
truncate -s "$(host_offset "$farther")" "$image"
