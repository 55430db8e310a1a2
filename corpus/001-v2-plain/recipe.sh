#!/bin/sh
# A version 2 image (72-byte header, no feature bits) with 1 KiB clusters and a little data.
set -eu
. "$(dirname "$0")/../lib.sh"

plain compat=0.10,cluster_size=1k
expect "$(version)" 2 version
