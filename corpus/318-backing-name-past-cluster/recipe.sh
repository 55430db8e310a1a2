#!/bin/sh
# The backing file name starts in the first cluster and ends behind it.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=4k 64k
poke8 8 4090
poke4 16 8
