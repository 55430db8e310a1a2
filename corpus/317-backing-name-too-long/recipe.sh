#!/bin/sh
# The backing file name is 1024 bytes long, one more than allowed.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=4k 64k
poke8 8 2048
poke4 16 1024
fill 2048 1024 0x62
