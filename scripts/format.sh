#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# usage: format.sh [--check]
# Formats all C++ in place, or only says what is not formatted. Always clang-format 14: other versions differ in details.
set -eu
cd "$(dirname "$0")/.."

clang_format=
for candidate in clang-format-14 clang-format; do
    case $("$candidate" --version 2>/dev/null) in
        *" version 14."*) clang_format=$candidate; break ;;
    esac
done
[ -n "$clang_format" ] || { echo "clang-format 14 is not installed (./scripts/setup.sh test)"; exit 77; }

mode=-i
[ "${1:-}" != --check ] || mode='--dry-run --Werror'

dirs=
for dir in include src tools bench examples tests; do
    [ ! -d "$dir" ] || dirs="$dirs $dir"
done
# shellcheck disable=SC2086  # words
find $dirs -type f \( -name '*.hpp' -o -name '*.cpp' -o -name '*.hpp.in' \) -print0 |
    xargs -0 -r "$clang_format" --style=file $mode
