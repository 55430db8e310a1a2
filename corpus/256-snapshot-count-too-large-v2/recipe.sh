#!/bin/sh
# A version 2 header counts three snapshots where there are two: qemu-img takes the phantom for real.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots compat=0.10
poke4 60 3
