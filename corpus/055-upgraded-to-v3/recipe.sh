#!/bin/sh
# A version 2 image upgraded to version 3 by qemu-img amend.
set -eu
. "$(dirname "$0")/../lib.sh"

plain compat=0.10
qemu-img amend -q -f qcow2 -o compat=1.1 "$image"
expect "$(version)" 3 version
