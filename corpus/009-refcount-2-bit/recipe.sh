#!/bin/sh
# Refcounts of 2 bits each.
set -eu
. "$(dirname "$0")/../lib.sh"

plain refcount_bits=2
expect "$(refcount_bits)" 2 'refcount bits'
expect "$(refcount "$(host_offset 0)")" 1 'refcount of a guest cluster'
