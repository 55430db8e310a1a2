#!/bin/sh
# A snapshot's name is an escape character, a bracket and a byte that is not UTF-8.
set -eu
. "$(dirname "$0")/../lib.sh"

with_snapshots
poke_text "$(snapshot_name_offset 0)" '\033[\377'
