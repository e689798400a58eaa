#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# usage: demo.sh
# Sets up what is missing, builds the command, replays three recorded kernels and checks every address and fault
# against what the recorded machine answered. Ends with one table. Exit code 0: all of them agreed.
set -eu
cd "$(dirname "$0")/.."
out=out/demo

./scripts/setup.sh build
cmake --preset release >&2
cmake --build --preset release >&2
mkdir -p "$out"

rc=0
results= # mode=M FILE ..., as awk takes them
replay() { # replay NAME MODE
    stats=$out/$1.json
    rm -f "$stats"
    echo >&2
    echo "mmusim replay traces/$1.jsonl.zst --mode $2 --check --stats $stats" >&2
    code=0
    build/release/bin/mmusim replay "traces/$1.jsonl.zst" --mode "$2" --check --stats "$stats" >&2 || code=$?
    [ "$rc" -ge "$code" ] || rc=$code
    if [ -s "$stats" ]; then
        results="$results mode=$2 $stats"
    else
        echo "demo: $1: no result (exit code $code)" >&2
        [ "$rc" -ne 0 ] || rc=2
    fi
}
replay linux-6.1-amd64-4level 4-on-4
replay linux-6.1-686pae-pae 3-on-3
replay linux-6.1-686-2level 2-on-3
[ -n "$results" ] || exit "$rc"

# The documents have one member a line, two spaces a level, so their paths can be read without a JSON tool.
echo
# shellcheck disable=SC2086  # words
awk '
function count(path,   n, text) {  # 1234567 -> 1,234,567
    if (!(path in value)) return "-"
    n = sprintf("%.0f", value[path])
    while (length(n) > 3) {
        text = "," substr(n, length(n) - 2) text
        n = substr(n, 1, length(n) - 3)
    }
    return n text
}
function row(a, b, c, d, e, f, g, h, i) {
    printf "%-24s  %-6s  %9s  %12s  %13s  %9s  %10s  %10s  %12s\n", a, b, c, d, e, f, g, h, i
}
function finish() {
    if (!started) return
    row(value["trace.name"], shown_mode, count("accesses.total"), count("guest_faults"), count("shadow.fault"),
        count("walks.count"), count("cycles.total"), count("checks.mismatched"), count("host.accesses_per_second"))
    if (value["checks.mismatched"] != "0" || value["complete"] != "true") bad = 1
    split("", value)
}
BEGIN {
    row("trace", "mode", "accesses", "guest faults", "shadow faults", "TLB walks", "time", "mismatches", "speed")
    row("", "", "(count)", "(#PF)", "(count)", "(count)", "(cycles)", "(count)", "(accesses/s)")
}
FNR == 1 { finish(); started = 1; shown_mode = mode }
match($0, /^ *"[^"]*": /) {
    line = substr($0, RLENGTH + 1)
    key = substr($0, 1, RLENGTH)
    depth = (index(key, "\"") - 1) / 2
    gsub(/^ *"|": $/, "", key)
    name[depth] = key
    path = name[1]
    for (i = 2; i <= depth; ++i) path = path "." name[i]
    sub(/,$/, "", line)
    gsub(/^"|"$/, "", line)
    value[path] = line
}
END { finish(); exit bad }
' $results || [ "$rc" -ne 0 ] || rc=1
exit "$rc"
