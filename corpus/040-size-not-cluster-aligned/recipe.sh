#!/bin/sh
# A virtual size that is a multiple of 512 but not of the cluster size; the last cluster is in use.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=4k 66048
io 'write -q -P 1 65536 512'
expect "$(peek8 24)" 66048 'virtual size'
