#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# usage: draw_validation.sh [BIN_DIR]
# Measures the model again and renews docs/validation.svg and, in docs/validation.md, what stands between lines
# <!-- NAME --> and <!-- end of NAME -->. BIN_DIR (default: build/release/bin) has the mmusim command.
set -eu
cd "$(dirname "$0")/.."
bin=${1:-build/release/bin}
page=docs/validation.md
curve="curve --cpu golden_cove --measured tests/data/measured/translation_latency_4k.csv --column median_of_run_minima"

made=$(mktemp)
renewed=$(mktemp)
trap 'rm -f "$made" "$renewed"' EXIT

# Puts standard input between the lines that are named.
renew() {
    cat > "$made"
    awk -v name="$1" -v made="$made" '
        $0 == "<!-- end of " name " -->" { inside = 0; ++found }
        !inside { print }
        $0 == "<!-- " name " -->" { inside = 1; ++found; while ((getline line < made) > 0) print line }
        END { exit found != 2 }
    ' "$page" > "$renewed" || { echo "draw_validation.sh: $page has no block '$1'" >&2; exit 1; }
    cat "$renewed" > "$page"
}
microbench() { "$bin/mmusim" microbench "$@"; }
# Lines of CSV, but the first, as rows of a table: the columns that are named by number.
rows() { awk -F, -v columns="$*" 'BEGIN { n = split(columns, at, " ") }
    NR > 1 { row = "|"; for (i = 1; i <= n; ++i) row = row " " $at[i] " |"; print row }'; }

# shellcheck disable=SC2086  # words
microbench $curve --from 83 --from 1300 --svg docs/validation.svg | sed -n 's/^mean error/- &/p' | renew errors

{
    echo '| pages | measured | model | error, % | | pages | measured | model | error, % | | pages | measured | model | error, % |'
    echo '| ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |'
    # shellcheck disable=SC2086
    microbench $curve --csv - | awk -F, '
        NR > 1 && $1 >= 83 { cell[n++] = $1 " | " $2 " | " $3 " | " $4 }
        END {
            rows = int((n + 2) / 3)
            for (i = 0; i < rows; ++i) {
                line = "| " cell[i]
                for (j = i + rows; j < 3 * rows; j += rows) line = line " | | " (j < n ? cell[j] : "| | |")
                print line " |"
            }
        }'
} | renew curve

{
    echo '| stride, pages | level 1 holds | level 2 holds |'
    echo '| ---: | ---: | ---: |'
    microbench strides --points 1,2,4,8,16,32,4096,8192,16384 --csv - | rows 1 2 3
} | renew strides

{
    echo '| pages in the set | mean | least | most |'
    echo '| ---: | ---: | ---: | ---: |'
    microbench sets --pages 23 --csv - | rows 1 2 3 4 | awk -F'|' '$2 + 0 >= 6'
} | renew sets

{
    echo '| tables | random | 2 MiB | 4 MiB | 16 MiB | 64 MiB | 1 GiB |'
    echo '| ---: | ---: | ---: | ---: | ---: | ---: | ---: |'
    points=8,12,16,20,24,28,32,40,48,64,96
    for spacing in random 1 2 8 32 512; do
        microbench reach --spacing $spacing --points $points --pages 4096 --csv -
    done | awk -F, '$1 == "entries" { next }
        !($1 in row) { order[n++] = $1 }
        { row[$1] = row[$1] " " $3 " |" }
        END { for (i = 0; i < n; ++i) print "| " order[i] " |" row[order[i]] }'
} | renew reach

{
    echo '| chains | cycles an access |'
    echo '| ---: | ---: |'
    microbench parallel --points 1,2,3,4,5,6,8,12 --csv - | rows 1 2
} | renew parallel

{
    echo '| pages | cycles an access |'
    echo '| ---: | ---: |'
    microbench curve --mapping own --points 64,128,512,1024,2048,4096,8192,16384,32768,65536 --csv - | rows 1 2
} | renew own
