#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# usage: pkg_config.sh PREFIX COMPILER SCRATCH
# Builds the consumer with nothing but the compiler and the flags that mmusim.pc gives, and runs it.
set -eu
prefix=$1 compiler=$2 scratch=$3
here=$(cd "$(dirname "$0")" && pwd)

command -v pkg-config >/dev/null || { echo "pkg-config is not installed"; exit 77; }

main=$here/../../examples/translate/main.cpp
[ -e "$main" ] || main=$here/consumer/version.cpp

pc=$(find "$prefix" -name mmusim.pc)
PKG_CONFIG_PATH=$(dirname "$pc")
export PKG_CONFIG_PATH
flags=$(pkg-config --static --cflags --libs mmusim)
echo "flags: $flags"

mkdir -p "$scratch"
# shellcheck disable=SC2086  # the flags are words
"$compiler" -std=c++20 -O1 "$main" $flags -o "$scratch/consumer"
LD_LIBRARY_PATH=$(dirname "$(dirname "$pc")")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} "$scratch/consumer"
