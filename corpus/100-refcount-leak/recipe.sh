#!/bin/sh
# One cluster at the end of the file has refcount 1 and nothing refers to it.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
leaked=$(append_cluster)
set_refcount "$leaked" 1
