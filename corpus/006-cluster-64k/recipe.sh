#!/bin/sh
# The default cluster size, 64 KiB, with the feature name table that QEMU writes when there is room.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=64k 4M
io 'write -q -P 1 1M 4k'
extension_offset 0x6803f857 >/dev/null
