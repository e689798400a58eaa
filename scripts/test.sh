#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# usage: test.sh
# Sets up what is missing, builds and runs everything: with clang++ and sanitizers, then with g++ optimised, where
# ctest also runs the checks on the tree (format, clang-tidy, floors, installed copy, README). Ends with ctest's summary.
set -eu
cd "$(dirname "$0")/.."

./scripts/setup.sh build test

cmake --preset dev
cmake --build --preset dev
cmake --preset ci
cmake --build --preset ci --target all mmusim_verify_interface_header_sets

ctest --preset dev -j "$(nproc)"
ctest --preset ci -j "$(nproc)"
