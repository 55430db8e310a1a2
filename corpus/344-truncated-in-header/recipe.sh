#!/bin/sh
# Only the first 40 bytes of the file are left.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
truncate -s 40 "$image"
