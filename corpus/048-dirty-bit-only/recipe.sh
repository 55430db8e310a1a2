#!/bin/sh
# The dirty bit is set although every refcount is right.
set -eu
. "$(dirname "$0")/../lib.sh"

plain lazy_refcounts=on
poke8 72 1
