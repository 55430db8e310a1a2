#!/bin/sh
# Lazy refcounts allowed, closed properly: the dirty bit is off.
set -eu
. "$(dirname "$0")/../lib.sh"

plain lazy_refcounts=on
expect "$(peek8 80)" 1 'compatible features'
expect "$(incompatible_features)" 0 'incompatible features'
