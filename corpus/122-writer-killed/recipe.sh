#!/bin/sh
# A writer was killed between writing the refcounts and writing the L2 table: eight leaks.
set -eu
. "$(dirname "$0")/../lib.sh"

create cluster_size=512 128k
io 'write -q -P 1 0 2k'
# blkdebug refuses the write of the L2 table, then the process dies.
(qemu-io -c 'write -q -P 2 2k 4k' -c flush -c 'sigraise 9' --image-opts "driver=qcow2,file.driver=blkdebug,\
file.image.driver=file,file.image.filename=$image,file.inject-error.0.event=l2_update" >/dev/null || :) 2>/dev/null
expect "$(peek8 "$(l2_entry_offset 4)")" 0 'L2 entry 4'
