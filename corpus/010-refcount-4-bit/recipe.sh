#!/bin/sh
# Refcounts of 4 bits each.
set -eu
. "$(dirname "$0")/../lib.sh"

plain refcount_bits=4
expect "$(refcount_bits)" 4 'refcount bits'
expect "$(refcount "$(host_offset 0)")" 1 'refcount of a guest cluster'
