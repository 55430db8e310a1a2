#!/bin/sh
# Rebuilds the images of the corpus from their recipes, in a temporary directory, and asks qemu-img about each.
#
#   regenerate.sh [CASE...]           put whatever differs into place
#   regenerate.sh --check [CASE...]   change nothing; fail if qemu-img says something else than qemu-img.json
#   regenerate.sh --table             print the table of README.md, made of the recipes' first sentences
#
# A CASE is a directory name or its number. Without any, all are done.
set -eu
. "$(dirname "$0")/lib.sh"

mode=place
case ${1:-} in
--check) mode=check && shift ;;
--table) mode=table && shift ;;
-*) die "unknown option $1" ;;
esac

cases=
if [ $# -eq 0 ]; then
    set -- ''
fi
for wanted; do
    found=
    for recipe in "$corpus_dir/$wanted"*/recipe.sh; do
        [ -e "$recipe" ] || continue
        found=$(basename "$(dirname "$recipe")")
        cases="$cases $found"
    done
    [ -n "$found" ] || die "no case $wanted"
done

if [ "$mode" = table ]; then
    printf '| case | what it is |\n|---|---|\n'
    for name in $cases; do
        printf '| `%s` | %s |\n' "$name" "$(sed -n '2s/^# //p' "$corpus_dir/$name/recipe.sh")"
    done
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

count=0
same=0
failed=0
for name in $cases; do
    count=$((count + 1))
    if ! sh "$corpus_dir/$name/recipe.sh" "$work/$name" </dev/null; then
        echo "$name: the recipe failed" >&2
        failed=$((failed + 1))
        continue
    fi
    (cd "$work/$name" && record)
    ! cmp -s "$work/$name/$image" "$corpus_dir/$name/$image" || same=$((same + 1))
    if [ "$mode" = check ]; then
        if ! cmp -s "$work/$name/qemu-img.json" "$corpus_dir/$name/qemu-img.json"; then
            echo "$name: qemu-img says something else:" >&2
            diff "$corpus_dir/$name/qemu-img.json" "$work/$name/qemu-img.json" >&2 || :
            failed=$((failed + 1))
        fi
    else
        for file in "$work/$name"/*; do
            cmp -s "$file" "$corpus_dir/$name/${file##*/}" || cp "$file" "$corpus_dir/$name/${file##*/}"
        done
    fi
    rm -rf "${work:?}/$name"
done

echo "$count cases, $same images the same byte for byte, $failed failed"
[ "$failed" -eq 0 ]
