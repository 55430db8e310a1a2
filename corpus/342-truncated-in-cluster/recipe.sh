#!/bin/sh
# The file ends in the middle of the last data cluster.
set -eu
. "$(dirname "$0")/../lib.sh"

plain cluster_size=1k
truncate -s $(($(host_offset "$farther") + 512)) "$image"
