#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# usage: check.sh TREE
# Includes only go down: a file may include headers of its own room and of rooms on a lower floor, nothing else.
# Also: no heavy header in a public one, and an SPDX line on top of each source. Prints "file:line: what", exits 1.
set -eu
cd "$1"

dirs=
for dir in include src tools bench examples tests scripts cmake .ci CMakeLists.txt; do
    [ ! -e "$dir" ] || dirs="$dirs $dir"
done

# shellcheck disable=SC2086  # the directories are words
find $dirs -type f \( -name '*.hpp' -o -name '*.cpp' -o -name '*.in' -o -name '*.sh' -o -name '*.cmake' \
    -o -name CMakeLists.txt -o -path '.ci/run' \) | LC_ALL=C sort > "${TMPDIR:-/tmp}/layering.$$"
trap 'rm -f "${TMPDIR:-/tmp}/layering.$$"' EXIT

awk '
BEGIN {
    # The floors. A new room gets its line here.
    floor["words"] = 0
    floor["storage"] = 1; floor["pagewalk"] = 1; floor["p2m"] = 1
    floor["tlb"] = 2; floor["timing"] = 2; floor["coherence"] = 2; floor["shadow"] = 2; floor["pv_audit"] = 2
    floor["cpu"] = 3
    floor["machine"] = 4
    floor["trace"] = 5
    floor["microbench"] = 5
    floor["replay"] = 6
    floor["tools"] = 7; floor["bench"] = 7; floor["examples"] = 7
}
function complain(line, what) {
    print file ":" line ": " what
    bad = 1
}
# The room that a file of the tree is in; "" for headers directly in include/mmusim and for files outside the floors.
function room_of(path,   part) {
    split(path, part, "/")
    if (part[1] == "include") return part[4] == "" ? "" : part[3]
    if (part[1] == "src") return part[2]
    return (part[1] in floor) ? part[1] : ""
}
# One #include: `name` as written between the quotes or brackets.
function check(line, name, quoted,   target, ours) {
    if (file ~ /^include\// && (name ~ /^CLI\// || name ~ /^simdjson/ ||
                                (name ~ /^nlohmann\// && name != "nlohmann/json_fwd.hpp")))
        complain(line, "heavy header <" name "> in a public header")

    target = name
    sub(/^(\.\.\/)+/, "", target)
    ours = sub(/^include\//, "", target) + sub(/^src\//, "", target) + sub(/^mmusim\//, "", target)
    if (target !~ /\//) return  # beside this file, of the system, or mmusim/version.hpp
    sub(/\/.*/, "", target)
    if (!(target in floor)) {
        if (ours) complain(line, "includes " name ": no such room")
        return
    }
    if (!ours && !quoted) return  # <machine/…> is the system'"'"'s
    if (target == room || floor[target] < floor[room]) return
    complain(line, room " (floor " floor[room] ") includes " name " (floor " floor[target] ")")
}
function scan(   line, text, quoted, spdx, n) {
    room = room_of(file)
    if (room != "" && !(room in floor)) complain(1, "is in no known room")
    n = 0
    while ((getline text < file) > 0) {
        ++n
        if (n <= 3 && text ~ /^(\/\/|#) SPDX-License-Identifier: Apache-2\.0$/) spdx = 1
        if (!(room in floor) || text !~ /^[ \t]*#[ \t]*include[ \t]*[<"]/) continue
        quoted = text ~ /^[^<]*"/
        sub(/^[^<"]*[<"]/, "", text)
        sub(/[>"].*/, "", text)
        check(n, text, quoted)
    }
    close(file)
    if (n > 0 && !spdx) complain(1, "no SPDX-License-Identifier line on top")
}
{ file = $0; scan() }
END { exit bad }
' "${TMPDIR:-/tmp}/layering.$$"
