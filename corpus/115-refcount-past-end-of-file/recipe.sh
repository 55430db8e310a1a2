#!/bin/sh
# A cluster past the end of the file has refcount 1 (qemu-img does not look there).
set -eu
. "$(dirname "$0")/../lib.sh"

plain
set_refcount $(($(file_length) + 5 * $(cluster_size))) 1
