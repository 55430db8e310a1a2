#!/bin/sh
# The disk shrank to what its first L2 table describes; the L1 table kept its size and its last entries are empty.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
qemu-img resize -q --shrink "$image" 32k
