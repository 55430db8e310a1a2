#!/bin/sh
# Lazy refcounts and a killed writer: the dirty bit is set and the new clusters have refcount 0.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=512,lazy_refcounts=on 128k
io 'write -q -P 1 0 2k'
# Nothing but an accurate close or a new L2 table makes QEMU write refcounts here, so stay in the one L2 table.
io_crash 'write -q -P 2 2k 4k' 'flush'
expect "$(incompatible_features)" 1 'incompatible features'
expect "$(refcount "$(host_offset 5)")" 0 'refcount'
