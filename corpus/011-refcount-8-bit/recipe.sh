#!/bin/sh
# Refcounts of 8 bits each.
set -eu
. "$(dirname "$0")/../lib.sh"

plain refcount_bits=8
expect "$(refcount_bits)" 8 'refcount bits'
expect "$(refcount "$(host_offset 0)")" 1 'refcount of a guest cluster'
