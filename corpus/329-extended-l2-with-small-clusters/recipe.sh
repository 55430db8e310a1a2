#!/bin/sh
# The extended L2 bit is set in an image with clusters of 1 KiB.
set -eu
. "$(dirname "$0")/../lib.sh"

plain cluster_size=1k
set_bits8 72 16
