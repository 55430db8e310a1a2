# shellcheck shell=bash
# What the tests of contrib/ share: the program under test, images, words. Read by each of them, never run.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

fail() {
    echo "FAILED: $*" >&2
    exit 1
}
holds() { echo "   holds: $*"; }

# A test without its tool would test nothing: `need COMMAND PACKAGE`.
need() {
    command -v "$1" >/dev/null || fail "$1 is not there (Debian package $2)"
}

# A Python that has yaml, to be asked for by `need_yaml`.
need_yaml() {
    for python_with_yaml in python3 /usr/bin/python3; do
        if "$python_with_yaml" -c 'import yaml' 2>/dev/null; then
            return
        fi
    done
    fail "there is no Python with yaml (Debian package python3-yaml)"
}

# The program under test: QFSCK, or what cargo built last.
QFSCK=${QFSCK:-${CARGO_TARGET_DIR:-$repository/target}/release/qfsck}
[ -x "$QFSCK" ] || fail "there is no $QFSCK: cargo build --release, or set QFSCK"
export QFSCK

corpus() { echo "$repository/corpus/$1/image.qcow2"; }

# Ends with 0 once a command does; `wait_for SECONDS WHAT COMMAND…`.
wait_for() {
    local limit=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        if [ "$SECONDS" -ge "$limit" ]; then
            fail "waited in vain for $what"
        fi
        sleep 0.2
    done
}
