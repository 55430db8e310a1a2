#!/bin/sh
# How many images a second of processor time an audit checks, beside a shell loop of `qemu-img check`.
#
#     cargo build --release && benches/audit.sh target/release/qfsck /var/tmp/images 10000
#
# Makes so many small images in the directory, where they stay: five real ones, copied. Run it twice for warm numbers.
set -eu
qfsck=$(realpath "$1")
images=$2
count=${3:-10000}
mkdir -p "$images"
cd "$images"
last=vm-$(printf %05d $((count - 1)))
if [ ! -e "$last" ]; then
    for kind in 0 1 2 3 4; do
        qemu-img create -q -f qcow2 "kind-$kind" 1G
        qemu-io -f qcow2 -c "write $((kind * 100))M $((kind * 64 + 64))k" -c 'write 700M 64k' "kind-$kind" >/dev/null
    done
    seq 0 $((count - 1)) | while read -r number; do
        echo "kind-$((number % 5)) vm-$(printf %05d "$number")"
    done | xargs -n2 -P2 cp --reflink=auto --sparse=always
    rm kind-?
fi
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT

# The processor time of a command and its children, in seconds; its output is not looked at.
processor_seconds() {
    sh -c '"$@" >/dev/null 2>&1; times' sh "$@" | awk 'NR == 2 {
        for (field = 1; field <= 2; field++) { split($field, part, /[ms]/); sum += part[1] * 60 + part[2] }
        print sum
    }'
}

tell() {
    awk -v what="$1" -v seconds="$2" -v count="$count" 'BEGIN {
        printf "%-28s %8.2f s of processor time, %7.0f images a second of it\n", what, seconds, count / seconds
    }'
}

loop=$(processor_seconds sh -c "find . -name 'vm-*' | xargs -P2 -n1 qemu-img check")
tell 'loop of qemu-img check' "$loop"
for run in plain first-night second-night; do
    case $run in
    plain) seconds=$(processor_seconds "$qfsck" audit --jobs 2 --output jsonl .) ;;
    *) seconds=$(processor_seconds "$qfsck" audit --jobs 2 --state "$state" .) ;;
    esac
    tell "qfsck audit, $run" "$seconds"
    awk -v loop="$loop" -v seconds="$seconds" 'BEGIN { printf "%28s %8.1f times as many\n", "", loop / seconds }'
done
