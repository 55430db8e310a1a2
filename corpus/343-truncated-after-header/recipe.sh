#!/bin/sh
# Only the first cluster of the file is left.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
truncate -s "$(cluster_size)" "$image"
