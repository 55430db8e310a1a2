#!/bin/sh
# The header's cluster has refcount 0.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
set_refcount 0 0
