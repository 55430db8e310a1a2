#!/bin/sh
# Data written and discarded again, which leaves free clusters between used ones.
set -eu
. "$(dirname "$0")/../lib.sh"

plain
io 'discard -q 512 1k' "discard -q $((far * 512)) 512"
