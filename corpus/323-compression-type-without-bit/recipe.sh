#!/bin/sh
# The compression type is zstd and its incompatible bit is off.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=512,compression_type=zstd 16k
clear_bits8 72 8
