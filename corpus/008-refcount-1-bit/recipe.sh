#!/bin/sh
# Refcounts of 1 bit each.
set -eu
. "$(dirname "$0")/../lib.sh"

plain refcount_bits=1
expect "$(refcount_bits)" 1 'refcount bits'
expect "$(refcount "$(host_offset 0)")" 1 'refcount of a guest cluster'
