#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# usage: policy_race.sh [BIN_DIR]
# Races the shadow policies on recorded and synthetic guests, and writes the tables of docs/policies.md anew: what stands
# there between the two lines "<!-- ... scripts/policy_race.sh -->". BIN_DIR (default: build/release/bin) has mmusim and
# example_process_workload.
set -eu
cd "$(dirname "$0")/.."
bin=${1:-build/release/bin}
document=docs/policies.md
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

race() { # race TRACE MODE RESULT
    "$bin/mmusim" compare "$1" --mode "$2,native" --check --csv "$3" \
        --policy xen,xen-2006,xen-2006-first,xen-2005,kvm,vtlb-stale,vtlb-nova,tlb-like,write-protect > /dev/null
}
for guest in 2-level:2-on-3:686-2level pae:3-on-3:686pae-pae 4-level:4-on-4:amd64-4level; do
    paging=${guest%%:*}
    recorded=${guest##*:}
    mode=${guest#*:}
    mode=${mode%%:*}
    "$bin/example_process_workload" "$paging" "$scratch/$paging.jsonl.zst" --processes 40 --seed 1 > /dev/null
    race "traces/linux-6.1-$recorded.jsonl.zst" "$mode" "$scratch/recorded-$paging.csv"
    race "$scratch/$paging.jsonl.zst" "$mode" "$scratch/synthetic-$paging.csv"
done

awk -F, '
BEGIN {
    policies = split("- xen xen-2006 xen-2006-first xen-2005 kvm vtlb-stale vtlb-nova tlb-like write-protect", policy, " ")
    pagings = split("2-level pae 4-level", paging, " ")
    named["2-level"] = "2-level"; named["pae"] = "PAE"; named["4-level"] = "4-level"
    published["2-level"] = "15.0 %, 11.9 %"; published["pae"] = "25.4 %, 20.2 %"; published["4-level"] = "19.5 %, 7.4 %"
}
FNR == 1 {
    file = FILENAME
    sub(/.*\//, "", file)
    sub(/\.csv$/, "", file)
    for (i = 1; i <= NF; ++i) column[$i] = i
    next
}
{
    cycles[file, $1] = $column["cycles"]
    exits[file, $1] = $column["exits"]
    emulated[file, $1] = $column["writes_emulated"]
    resyncs[file, $1] = $column["resyncs"]
}
function grouped(n,   text) {
    for (; length(n) > 3; n = substr(n, 1, length(n) - 3)) text = "," substr(n, length(n) - 2) text
    return n text
}
function cell(text) { printf " %s |", text }
function table(kind,   i, j, key) {
    printf "| %s |", kind
    for (j = 1; j <= pagings; ++j) {
        cell(named[paging[j]] ": cycles"); cell("exits"); cell("emulated"); cell("resyncs")
    }
    printf "\n| --- |"
    for (j = 1; j <= 4 * pagings; ++j) cell("---:")
    print ""
    for (i = 1; i <= policies; ++i) {
        printf "| %s |", policy[i] == "-" ? "native" : policy[i]
        for (j = 1; j <= pagings; ++j) {
            key = kind "-" paging[j] SUBSEP policy[i]
            cell(grouped(cycles[key])); cell(grouped(exits[key])); cell(grouped(emulated[key])); cell(grouped(resyncs[key]))
        }
        print ""
    }
    print ""
}
function saved(kind, name) {
    return sprintf("%.1f %%", 100 - 100 * cycles[kind "-" name, "xen"] / cycles[kind "-" name, "xen-2006"])
}
END {
    table("recorded")
    table("synthetic")
    print "| `xen` saves over `xen-2006` | recorded, of all cycles | synthetic, of all cycles | published in 2008, of a build'"'"'s time (1 vCPU, 2 vCPUs) |"
    print "| --- | ---: | ---: | ---: |"
    for (j = 1; j <= pagings; ++j) {
        printf "| %s |", named[paging[j]]
        cell(saved("recorded", paging[j])); cell(saved("synthetic", paging[j])); cell(published[paging[j]])
        print ""
    }
}' "$scratch"/*.csv > "$scratch/tables"

awk -v tables="$scratch/tables" '
/^<!-- end of scripts\/policy_race.sh -->$/ { inside = 0 }
!inside { print }
/^<!-- from scripts\/policy_race.sh -->$/ {
    inside = 1
    while ((getline line < tables) > 0) print line
}' "$document" > "$scratch/document"
cat "$scratch/document" > "$document"
cat "$scratch/tables"
