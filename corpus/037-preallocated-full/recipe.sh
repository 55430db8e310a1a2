#!/bin/sh
# Everything preallocated, data clusters included.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=1k,preallocation=full 16k
host_offset 15 >/dev/null
