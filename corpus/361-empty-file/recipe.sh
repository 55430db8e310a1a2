#!/bin/sh
# Not a qcow2 image: an empty file.
set -eu
. "$(dirname "$0")/../lib.sh"

: >"$image"
