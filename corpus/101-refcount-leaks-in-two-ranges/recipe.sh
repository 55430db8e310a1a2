#!/bin/sh
# Five leaked clusters in two ranges, one free cluster between them.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
for leaked in 1 1 1 0 1 1; do
    set_refcount "$(append_cluster)" $leaked
done
