#!/bin/sh
# A freshly created image without a single L2 table.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=4k 16M
