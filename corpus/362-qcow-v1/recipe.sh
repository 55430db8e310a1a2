#!/bin/sh
# An image of the older format qcow, which has the same magic and version 1.
set -eu
. "$(dirname "$0")/../lib.sh"

qemu-img create -q -f qcow "$image" 64k
expect "$(version)" 1 version
