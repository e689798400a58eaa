#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# usage: same_documents.sh COMMAND OTHER_COMMAND
# Two builds of the command (g++ optimised; clang++ with asserts and sanitizers) must write the same statistics document,
# byte for byte, `host` apart. Exit code 77: the other build is not there.
set -eu
[ -x "$2" ] || exit 77
cd "$(dirname "$0")/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

compare() {  # trace, then options
    trace=traces/$1.jsonl.zst
    shift
    for build in one other; do
        command=$one
        [ "$build" = one ] || command=$other
        "$command" replay "$trace" "$@" --stats "$scratch/$build.full" > "$scratch/out" 2>&1 || {
            cat "$scratch/out"
            exit 1
        }
        # `host` is the last member; the line before it ends with a comma in both.
        sed '/^  "host": {/,$d' "$scratch/$build.full" > "$scratch/$build"
    done
    cmp "$scratch/one" "$scratch/other" || { echo "differ: $trace $*"; exit 1; }
    echo "same: $trace $* ($(wc -l < "$scratch/one") lines)"
}

one=$1
other=$2
compare linux-6.1-amd64-4level --mode native --cpu golden_cove --clock window:16 --check-coherence
compare linux-6.1-amd64-4level --mode 4-on-4 --cpu zen4 --clock blocking
compare linux-6.1-686pae-pae --mode 3-on-3 --cpu skylake --clock window:4 --policy tlb-like --p2m shuffled:7
compare linux-6.1-686-2level --mode 2-on-3 --cpu nehalem --clock blocking --check
compare linux-6.1-amd64-bringup --cpu zen1 --clock window:3 --set data_caches.program=false
compare linux-6.1-686-2level --mode native --cpu sandy_bridge --clock off
