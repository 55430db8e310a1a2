#!/bin/sh
# A version 3 image with 512-byte clusters and data behind three of its four L1 entries: the base of most damages.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
expect "$(version)" 3 version
