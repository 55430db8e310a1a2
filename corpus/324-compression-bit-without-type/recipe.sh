#!/bin/sh
# The compression type's incompatible bit is set and the type is deflate.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
set_bits8 72 8
