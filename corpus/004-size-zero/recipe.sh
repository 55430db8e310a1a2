#!/bin/sh
# A virtual disk of zero bytes: the L1 table has no entries and the offset 0.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=4k 0
expect "$(peek8 24)" 0 'virtual size'
expect "$(l1_size)" 0 'L1 size'
expect "$(l1_offset)" 0 'L1 offset'
