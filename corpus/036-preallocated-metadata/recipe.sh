#!/bin/sh
# Preallocated metadata: every guest cluster has a host cluster, nothing was written.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=1k,preallocation=metadata 16k
host_offset 15 >/dev/null
