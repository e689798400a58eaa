#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# usage: stress.sh [FACTOR [FIRST-SEED]]
# Builds `mmusim_stress` optimised, and runs FACTOR (1) times 10,000 random guest programs of 1,000 steps in each
# paging mode, natively and under each policy: on the machine and on the tests' reference machine. As many modes at a
# time as there are processors. Where a program fails its shortest part that still does is left as a trace in
# build/stress, the log says how `mmusim replay` shows it, and the script ends with 1.
set -eu
cd "$(dirname "$0")/.."

factor=${1:-1}
first=${2:-1}
case $factor$first in *[!0-9]*) echo "usage: stress.sh [FACTOR [FIRST-SEED]]" >&2; exit 2 ;; esac

cmake --preset ci
cmake --build --preset ci --target mmusim_stress mmusim_command

mkdir -p build/stress
export MMUSIM_TRACES="$PWD/build/stress"
echo "programs from seed $first on, logs and traces in build/stress"
printf '%s\n' 2-level PAE 4-level 5-level |
    xargs -P "$(nproc)" -I {} sh -c \
        "build/ci/bin/mmusim_stress {} $((factor * 10000)) 1000 $first >build/stress/{}.log 2>&1; code=\$?
         tail -n 20 build/stress/{}.log; exit \$code" || { echo "stress.sh: a program failed" >&2; exit 1; }
