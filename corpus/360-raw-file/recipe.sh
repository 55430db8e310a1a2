#!/bin/sh
# Not a qcow2 image: 4 KiB of the letter r.
set -eu
. "$(dirname "$0")/../lib.sh"

fill 0 4096 0x72
