#!/bin/sh
# A header of 128 bytes with unknown additional fields.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
expect "$(header_length)" 112 'header length'
# Move whatever follows the header 16 bytes further and put two unknown fields in between.
copy_bytes 112 128 $(($(cluster_size) - 128))
poke8 112 0x1122334455667788
poke8 120 0x0102030405060708
poke4 100 128
extension_offset 0 >/dev/null
