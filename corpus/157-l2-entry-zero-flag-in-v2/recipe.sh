#!/bin/sh
# A version 2 image uses the zero flag, which version 2 does not have.
set -eu
. "$(dirname "$0")/../lib.sh"

plain compat=0.10
set_bits8 "$(l2_entry_offset "$far")" 1
