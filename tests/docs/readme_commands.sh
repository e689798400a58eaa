#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# usage: readme_commands.sh BIN_DIR [README]
# Does the README still tell the truth?
#  - ```sh blocks: `mmusim …` lines are run with the command from BIN_DIR; a script that is named must be there (it is not
#    run: these tests run inside of one); git, cd, cmake and ctest lines are passed over; any other line is an error.
#  - a code block after a line `<!-- from FILE -->` must stand, line by line, in FILE.
set -eu
bin=$1
cd "$(dirname "$0")/../.."
readme=${2:-README.md}
failed=0
fail() { echo "$readme:$1"; failed=1; }

lines=$(mktemp)
trap 'rm -f "$lines"' EXIT

awk '/^```/ { shell = ($0 == "```sh"); next } shell { sub(/^\$ /, ""); print NR " " $0 }' "$readme" > "$lines"
while read -r number line; do
    case $line in
        '' | '#'* | 'git '* | 'cd '* | 'cmake '* | 'ctest '*) ;;
        ./scripts/*)
            [ -x "${line%% *}" ] || fail "$number: there is no ${line%% *}" ;;
        'mmusim '* | 'build/release/bin/mmusim '*)
            echo "running: $line"
            (PATH=$bin:$PATH; eval "${line#build/release/bin/}") < /dev/null > /dev/null || fail "$number: exit code $?: $line" ;;
        *)
            fail "$number: this test does not know what to do with: $line" ;;
    esac
done < "$lines"

awk '
function compare(   n, i, j, source, same) {
    n = 0
    while ((getline text < file) > 0) source[++n] = text
    close(file)
    for (i = 0; i + length_of_block <= n; ++i) {
        same = 1
        for (j = 1; j <= length_of_block && same; ++j) same = source[i + j] == block[j]
        if (same) return
    }
    print FILENAME ":" start ": this block is not in " file
    bad = 1
}
/^<!-- from .* -->$/ { file = $3; start = NR; next }
/^```/ && inside { compare(); inside = 0; file = ""; next }
/^```/ && file != "" { inside = 1; length_of_block = 0; next }
inside { block[++length_of_block] = $0 }
END { exit bad }
' "$readme" || failed=1

exit $failed
