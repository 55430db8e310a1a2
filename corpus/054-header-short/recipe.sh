#!/bin/sh
# A version 3 header of 104 bytes, as QEMU wrote before compression types.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
expect "$(header_length)" 112 'header length'
copy_bytes 112 104 $(($(cluster_size) - 112))
poke4 100 104
extension_offset 0 >/dev/null
