# Helpers for the recipes of the corpus. POSIX sh, coreutils and the QEMU tools; nothing else.
#
# A recipe says `. "$(dirname "$0")/../lib.sh"` and finds itself in the directory named by its first argument (default:
# its own), where it writes `image.qcow2`. Every number read from the image is looked up in the image, never assumed.
#
# Arithmetic of the shell is signed 64 bit. Bit 63 is called COPIED, without a dollar sign inside $(( )): the shell
# reads neither 0x8000000000000000 nor -9223372036854775808 as what it is.

LC_ALL=C
export LC_ALL

image=image.qcow2

corpus_dir=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
case ${0##*/} in
recipe.sh)
    out=${1:-$corpus_dir}
    corpus_dir=${corpus_dir%/*}
    mkdir -p -- "$out"
    cd -- "$out"
    rm -f "$image"
    ;;
esac

COPIED=$((1 << 63))
COMPRESSED=$((1 << 62))
OFFSET_MASK=$(((1 << 56) - 512))

die() {
    printf '%s: %s\n' "$0" "$*" >&2
    exit 1
}

# ---------------------------------------------------------------------------------------------------- bytes

# peek1|peek2|peek4|peek8 OFFSET: a big-endian number as (signed) decimal.
peek_bytes() {
    value=0
    count=0
    for byte in $(od -An -v -tu1 -j "$1" -N "$2" "$image"); do
        value=$(((value << 8) | byte))
        count=$((count + 1))
    done
    [ "$count" -eq "$2" ] || die "peek at $1: the file has only $count of $2 bytes there"
    printf '%d\n' "$value"
}
peek1() { peek_bytes "$1" 1; }
peek2() { peek_bytes "$1" 2; }
peek4() { peek_bytes "$1" 4; }
peek8() { peek_bytes "$1" 8; }

# hex OFFSET: eight bytes as 0x................, for a human.
hex() { printf '0x%016x\n' "$(peek8 "$1")"; }

# number VALUE: an argument as a number, bit 63 alone included, in the variable of the same name.
number() {
    case $1 in
    -9223372036854775808) number=$((1 << 63)) ;;
    *) number=$(($1)) ;;
    esac
}

# poke1|poke2|poke4|poke8 OFFSET VALUE: write a big-endian number in place and read it back.
poke_bytes() {
    number "$3"
    octal=
    shift_bits=$((($2 - 1) * 8))
    while [ "$shift_bits" -ge 0 ]; do
        octal=$octal$(printf '\\%03o' $(((number >> shift_bits) & 255)))
        shift_bits=$((shift_bits - 8))
    done
    # shellcheck disable=SC2059  # the format is nothing but octal escapes
    printf "$octal" | dd of="$image" bs=1 seek=$(($1)) conv=notrunc status=none
    mask=$([ "$2" -eq 8 ] && echo -1 || echo $(((1 << ($2 * 8)) - 1)))
    [ "$(peek_bytes "$(($1))" "$2")" -eq $((number & mask)) ] || die "poke at $1 did not stick"
}
poke1() { poke_bytes "$1" 1 "$2"; }
poke2() { poke_bytes "$1" 2 "$2"; }
poke4() { poke_bytes "$1" 4 "$2"; }
poke8() { poke_bytes "$1" 8 "$2"; }

# poke_text OFFSET FORMAT: write the bytes that printf makes of FORMAT (octal escapes allowed).
# shellcheck disable=SC2059
poke_text() { printf "$2" | dd of="$image" bs=1 seek=$(($1)) conv=notrunc status=none; }

# fill OFFSET LENGTH BYTE: write LENGTH times the same byte (decimal or 0x..).
fill() {
    head -c $(($2)) /dev/zero | tr '\000' "\\$(printf '%03o' $(($3)))" |
        dd of="$image" bs=65536 oflag=seek_bytes seek=$(($1)) conv=notrunc status=none
}

# copy_bytes FROM TO LENGTH: within the image.
copy_bytes() {
    dd if="$image" bs=65536 iflag=skip_bytes,count_bytes skip=$(($1)) count=$(($3)) status=none >bytes.tmp
    dd if=bytes.tmp of="$image" bs=65536 oflag=seek_bytes seek=$(($2)) conv=notrunc status=none
    rm -f bytes.tmp
}

# set_bits8 OFFSET MASK, clear_bits8 OFFSET MASK: fail if there is nothing to set or to clear.
set_bits8() {
    before=$(peek8 "$1")
    number "$2"
    [ $((before & number)) -eq 0 ] || die "bits at $1 are already set"
    poke8 "$1" $((before | number))
}
clear_bits8() {
    before=$(peek8 "$1")
    number "$2"
    [ $((before & number)) -eq "$number" ] || die "bits at $1 are already clear"
    poke8 "$1" $((before & ~number))
}

# expect ACTUAL EXPECTED WHAT: stop if the image is not what the recipe believes.
expect() { [ $(($1)) -eq $(($2)) ] || die "$3: is $(($1)), expected $(($2))"; }

file_length() { wc -c <"$image" | tr -d ' '; }

# append_cluster: extend the file by one zeroed cluster at the next cluster boundary and print its offset. Its refcount
# is left as it is (0, unless the refcount block says otherwise).
append_cluster() {
    at=$((($(file_length) + $(cluster_size) - 1) / $(cluster_size) * $(cluster_size)))
    truncate -s $((at + $(cluster_size))) "$image"
    printf '%d\n' "$at"
}

# ---------------------------------------------------------------------------------------------------- header

version() { peek4 4; }
cluster_size() { echo $((1 << $(peek4 20))); }
l1_size() { peek4 36; }
l1_offset() { peek8 40; }
refcount_table_offset() { peek8 48; }
refcount_table_clusters() { peek4 56; }
snapshot_count() { peek4 60; }
snapshot_table_offset() { peek8 64; }
incompatible_features() { [ "$(version)" -eq 2 ] && echo 0 || peek8 72; }
refcount_bits() { [ "$(version)" -eq 2 ] && echo 16 || echo $((1 << $(peek4 96))); }
header_length() { [ "$(version)" -eq 2 ] && echo 72 || peek4 100; }

# extension_offset TYPE: where the extension's type field is; type 0 finds the end marker.
extension_offset() {
    at=$(header_length)
    while :; do
        type=$(peek4 "$at")
        [ "$type" -ne $(($1)) ] || break
        [ "$type" -ne 0 ] || die "no header extension $1"
        at=$((at + 8 + ($(peek4 $((at + 4))) + 7) / 8 * 8))
    done
    printf '%d\n' "$at"
}

# add_extension TYPE TEXT: put an extension in place of the end marker and a new end marker behind it. Only for images
# without a backing file name.
add_extension() {
    expect "$(peek8 8)" 0 'backing file name offset'
    at=$(extension_offset 0)
    poke4 "$at" "$1"
    poke4 $((at + 4)) ${#2}
    poke_text $((at + 8)) "$2"
    end=$((at + 8 + (${#2} + 7) / 8 * 8))
    poke8 "$end" 0
}

# ---------------------------------------------------------------------------------------------------- mapping

l2_entry_bytes() { [ $(($(incompatible_features) & 16)) -ne 0 ] && echo 16 || echo 8; }
l2_entries() { echo $(($(cluster_size) / $(l2_entry_bytes))); }

# l1_entry_offset L1_INDEX
l1_entry_offset() { echo $(($(l1_offset) + $1 * 8)); }

# l2_offset GUEST_CLUSTER: the L2 table that describes it, from the active L1 table.
l2_offset() {
    table=$(($(peek8 "$(l1_entry_offset $(($1 / $(l2_entries))))") & OFFSET_MASK))
    [ "$table" -ne 0 ] || die "guest cluster $1 has no L2 table"
    printf '%d\n' "$table"
}

# l2_entry_offset GUEST_CLUSTER
l2_entry_offset() { echo $(($(l2_offset "$1") + $1 % $(l2_entries) * $(l2_entry_bytes))); }

# host_offset GUEST_CLUSTER: of a standard cluster that has one.
host_offset() {
    entry=$(peek8 "$(l2_entry_offset "$1")")
    [ $((entry & COMPRESSED)) -eq 0 ] || die "guest cluster $1 is compressed"
    [ $((entry & OFFSET_MASK)) -ne 0 ] || die "guest cluster $1 has no host cluster"
    echo $((entry & OFFSET_MASK))
}

# Compressed clusters: compressed_offset and compressed_end (after the last sector) of GUEST_CLUSTER.
compressed_shift() { echo $((62 - ($(peek4 20) - 8))); }
compressed_offset() {
    entry=$(peek8 "$(l2_entry_offset "$1")")
    [ $((entry & COMPRESSED)) -ne 0 ] || die "guest cluster $1 is not compressed"
    echo $((entry & ((1 << $(compressed_shift)) - 1)))
}
compressed_end() {
    entry=$(peek8 "$(l2_entry_offset "$1")")
    start=$(compressed_offset "$1")
    more=$(((entry & (COMPRESSED - 1)) >> $(compressed_shift)))
    echo $((start / 512 * 512 + (more + 1) * 512))
}

# compressed_entry OFFSET ADDITIONAL_SECTORS
compressed_entry() { echo $((COMPRESSED | ($2 << $(compressed_shift)) | $1)); }

# ---------------------------------------------------------------------------------------------------- refcounts

# refcount_block_offset OFFSET: the block that holds the refcount of the cluster at this host offset.
refcount_block_index() { echo $(($1 / $(cluster_size) / ($(cluster_size) * 8 / $(refcount_bits)))); }
refcount_block_offset() {
    block=$(($(peek8 $(($(refcount_table_offset) + $(refcount_block_index "$1") * 8))) & ~511))
    [ "$block" -ne 0 ] || die "no refcount block for offset $1"
    printf '%d\n' "$block"
}
refcount_bit_index() { echo $(($1 / $(cluster_size) % ($(cluster_size) * 8 / $(refcount_bits)) * $(refcount_bits))); }

# refcount OFFSET: of the cluster at this host offset.
refcount() {
    bits=$(refcount_bits)
    bit=$(refcount_bit_index "$1")
    at=$(($(refcount_block_offset "$1") + bit / 8))
    if [ "$bits" -ge 8 ]; then
        peek_bytes "$at" $((bits / 8))
    else
        echo $((($(peek1 "$at") >> (bit % 8)) & ((1 << bits) - 1)))
    fi
}

# set_refcount OFFSET COUNT
set_refcount() {
    bits=$(refcount_bits)
    bit=$(refcount_bit_index "$1")
    at=$(($(refcount_block_offset "$1") + bit / 8))
    if [ "$bits" -ge 8 ]; then
        poke_bytes "$at" $((bits / 8)) "$2"
    else
        mask=$((((1 << bits) - 1) << (bit % 8)))
        poke1 "$at" $((($(peek1 "$at") & ~mask) | (($2 << (bit % 8)) & mask)))
    fi
    expect "$(refcount "$1")" "$2" "refcount of $1"
}

# ---------------------------------------------------------------------------------------------------- snapshots

# snapshot_offset N: the N-th entry (from 0) of the snapshot table.
snapshot_offset() {
    at=$(snapshot_table_offset)
    n=$1
    while [ "$n" -gt 0 ]; do
        at=$((at + (40 + $(peek4 $((at + 36))) + $(peek2 $((at + 12))) + $(peek2 $((at + 14))) + 7) / 8 * 8))
        n=$((n - 1))
    done
    printf '%d\n' "$at"
}
snapshot_l1_offset() { peek8 "$(snapshot_offset "$1")"; }
snapshot_l1_size() { peek4 $(($(snapshot_offset "$1") + 8)); }
# snapshot_name_offset N, snapshot_id_offset N
snapshot_id_offset() {
    entry_at=$(snapshot_offset "$1")
    echo $((entry_at + 40 + $(peek4 $((entry_at + 36)))))
}
snapshot_name_offset() {
    entry_at=$(snapshot_offset "$1")
    echo $((entry_at + 40 + $(peek4 $((entry_at + 36))) + $(peek2 $((entry_at + 12)))))
}

# still_dates: give every snapshot one fixed date, so that a recipe makes the same bytes every day.
still_dates() {
    snapshot=$(($(snapshot_count) - 1))
    while [ "$snapshot" -ge 0 ]; do
        poke4 $(($(snapshot_offset "$snapshot") + 16)) 1700000000
        poke4 $(($(snapshot_offset "$snapshot") + 20)) 0
        snapshot=$((snapshot - 1))
    done
}

# ---------------------------------------------------------------------------------------------------- bitmaps

BITMAPS=0x23852875
bitmap_directory_offset() { peek8 $(($(extension_offset $BITMAPS) + 24)); }
bitmap_directory_size() { peek8 $(($(extension_offset $BITMAPS) + 16)); }
# bitmap_entry_offset N: the N-th entry (from 0) of the bitmap directory.
bitmap_entry_offset() {
    at=$(bitmap_directory_offset)
    n=$1
    while [ "$n" -gt 0 ]; do
        at=$((at + (24 + $(peek4 $((at + 20))) + $(peek2 $((at + 18))) + 7) / 8 * 8))
        n=$((n - 1))
    done
    printf '%d\n' "$at"
}
bitmap_table_offset() { peek8 "$(bitmap_entry_offset "$1")"; }

# ---------------------------------------------------------------------------------------------------- tools

# create OPTIONS SIZE [NAME]
create() { qemu-img create -q -f qcow2 -o "$1" "${3:-$image}" "$2"; }

# io COMMAND...: qemu-io commands on the image, quietly.
io() {
    set -- "$@" ''
    while [ -n "$1" ]; do
        set -- "$@" -c "$1"
        shift
    done
    shift
    qemu-io -f qcow2 "$@" "$image" >/dev/null
}

# io_crash COMMAND...: the same, but the process dies without closing the image.
io_crash() {
    set -- "$@" ''
    while [ -n "$1" ]; do
        set -- "$@" -c "$1"
        shift
    done
    shift
    (qemu-io -f qcow2 "$@" -c 'sigraise 9' "$image" >/dev/null || :) 2>/dev/null
}

# data BYTE GUEST_CLUSTER [COUNT]: the qemu-io command that fills guest clusters with a byte.
data() { echo "write -q -P $1 $(($2 * $(cluster_size))) $((${3:-1} * $(cluster_size)))"; }

# packed_noise CLUSTERS: an image with 1 KiB clusters that are all compressed and hardly shrink. Two thirds of each is
# noise from a fixed linear congruence.
packed_noise() {
    awk -v clusters="$1" 'BEGIN { x = 12345; for (c = 0; c < clusters; c++) for (i = 0; i < 1024; i++) {
        x = (x * 1103 + 12345) % 65521; printf "%c", i < 680 ? 1 + x % 127 : 65 } }' >noise.tmp
    qemu-img convert -q -f raw -O qcow2 -c -o cluster_size=1k noise.tmp "$image"
    rm -f noise.tmp
}

# plain [MORE_OPTIONS]: the image most damages start from. Clusters of 512 bytes (1 KiB where the options say so), a
# disk that four L2 tables describe. Guest clusters 0-3 (L1 entry 0), $far (the first of L1 entry 1) and $farther (the
# first of L1 entry 2) hold data; L1 entry 3 is unused.
plain() {
    case ${1:-} in
    *cluster_size=1k*) create "$1" 512k ;;
    *) create "cluster_size=512${1:+,$1}" 128k ;;
    esac
    far=$(l2_entries)
    farther=$((2 * far))
    io "$(data 0x10 0)" "$(data 0x11 1)" "$(data 0x12 2)" "$(data 0x13 3)" \
        "$(data 0x80 "$far")" "$(data 0x30 "$farther")"
}

# with_snapshots [MORE_OPTIONS]: plain, then snapshot "one", guest clusters 1 and $farther rewritten, snapshot "two",
# guest cluster 2 rewritten.
with_snapshots() {
    plain "${1:-}"
    qemu-img snapshot -c one "$image"
    io "$(data 0x21 1)" "$(data 0x31 "$farther")"
    qemu-img snapshot -c two "$image"
    io "$(data 0x22 2)"
    still_dates
}

# with_bitmaps [MORE_OPTIONS]: plain, then bitmaps "first" (granularity 512) and "second" (granularity 64 KiB), then
# guest cluster 2 and the second of L1 entry 1 are written, so that both bitmaps have bits set.
with_bitmaps() {
    plain "${1:-}"
    qemu-img bitmap --add -g 512 "$image" first
    qemu-img bitmap --add -g 64k "$image" second
    io "$(data 0x42 2)" "$(data 0x43 $((far + 1)))"
}

# ---------------------------------------------------------------------------------------------------- verdicts

# json_lines: standard input as JSON strings, one per line, comma separated. Bytes that are not ASCII become U+FFFD.
json_lines() {
    od -An -v -tu1 | awk '
        { for (i = 1; i <= NF; i++) {
            b = $i + 0
            if (b == 10) { print_line(); continue }
            if (b == 34) text = text "\\\""
            else if (b == 92) text = text "\\\\"
            else if (b < 32 || b == 127) text = text sprintf("\\u%04x", b)
            else if (b > 127) text = text "\\ufffd"
            else text = text sprintf("%c", b)
            open = 1
        } }
        END { if (open) print_line(); if (lines) printf "\n" }
        function print_line() {
            printf "%s    \"%s\"", lines ? ",\n" : "", text
            lines++; text = ""; open = 0
        }'
}

# record: what qemu-img check says about image.qcow2 in the current directory, into qemu-img.json.
record() {
    code=0
    qemu-img check --output=json "$image" >check.out 2>check.err </dev/null || code=$?
    lines=$(wc -l <check.err | tr -d ' ')
    {
        printf '{\n  "version": "%s",\n' "$(qemu-img --version | sed -n '1s/^qemu-img version \([0-9.]*\).*/\1/p')"
        printf '  "exit": %d,\n  "report": ' "$code"
        if [ -s check.out ]; then
            awk 'NR > 1 { printf "\n  " } { printf "%s", $0 }' check.out
        else
            printf 'null'
        fi
        printf ',\n  "stderr-lines": %d,\n  "stderr": [' "$lines"
        if [ "$lines" -gt 0 ]; then
            printf '\n'
            head -n 20 check.err | json_lines
            printf '  '
        fi
        printf ']\n}\n'
    } >qemu-img.json
    rm -f check.out check.err
}
