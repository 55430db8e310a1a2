#!/bin/sh
# The compression type is 7.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=512,compression_type=zstd 16k
poke1 104 7
