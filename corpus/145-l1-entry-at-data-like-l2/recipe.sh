#!/bin/sh
# An unused L1 entry points at guest data that reads as repairable L2 entries: qemu-img check -r all overwrites it all.
set -eu
. "$(dirname "$0")/../lib.sh"

plain cluster_size=1k
# Each word is a zero cluster with an unaligned host offset.
at=$(host_offset "$far")
poke8 "$at" 0x201
for length in 8 16 32 64 128 256 512; do
    copy_bytes "$at" $((at + length)) $length
done
poke8 "$(l1_entry_offset 3)" $((COPIED | at))
