#!/bin/sh
# The disk grew, and the L1 table moved to make room for more entries.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
qemu-img resize -q "$image" 16M
io 'write -q -P 0x77 15M 512'
expect "$(l1_size)" 512 'L1 size'
