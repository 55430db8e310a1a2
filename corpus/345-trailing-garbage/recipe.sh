#!/bin/sh
# Five and a half clusters of foreign bytes follow the last cluster.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
fill "$(file_length)" 2816 0x5a
