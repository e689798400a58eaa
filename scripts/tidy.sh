#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# usage: tidy.sh [BUILD_DIR [FILE...]]
# clang-tidy on the library's sources (or the given ones), one on each core, with the flags of BUILD_DIR (build/ci).
set -eu
cd "$(dirname "$0")/.."
build=${1:-build/ci}
[ $# -eq 0 ] || shift

command -v clang-tidy >/dev/null || { echo "clang-tidy is not installed (./scripts/setup.sh test)"; exit 77; }
[ -e "$build/compile_commands.json" ] || { echo "no $build/compile_commands.json: configure first"; exit 2; }
# shellcheck disable=SC2046  # no spaces in our names
[ $# -gt 0 ] || set -- $(find src -name '*.cpp' | LC_ALL=C sort)
[ $# -gt 0 ] || exit 0

# Standard error counts the suppressed warnings of system headers; of interest only where something else is there.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
rc=0
printf '%s\n' "$@" | xargs -P "$(nproc)" -n 1 clang-tidy -p "$build" --quiet 2>"$log" || rc=1
grep -vE '^[0-9]+ warnings?( and [0-9]+ errors?)? generated\.$' "$log" >&2 || true
exit $rc
