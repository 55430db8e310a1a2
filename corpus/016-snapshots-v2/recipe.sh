#!/bin/sh
# A version 2 image with two diverged snapshots.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots compat=0.10
