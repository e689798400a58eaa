#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# usage: setup.sh [build] [test]        (default: build)
# Makes sure that what is needed is installed on Debian 12 or newer (or Ubuntu 24.04); asks apt only for what is missing.
#   build   to build the library and the command
#   test    to build and run everything else: tests, benchmarks, sanitizers, format, clang-tidy
# Exit code 2: packages are missing and we may not install them; the line to type is printed.
set -eu

say() { echo "setup: $*" >&2; }

have_command() { command -v "$1" >/dev/null 2>&1; }
have_package() { dpkg-query -W -f='${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed; }

# have_boost: is there a Boost of at least 1.81? (Its -dev packages of different versions exclude each other.)
have_boost() {
    dpkg-query -W -f='${db:Status-Status} ${Package}\n' 'libboost1.*-dev' 2>/dev/null |
        sed -n 's/^installed libboost1\.\([0-9]*\)-dev$/\1/p' | {
            while read -r minor; do
                [ "$minor" -lt 81 ] || exit 0
            done
            exit 1
        }
}
# Debian 12 calls its newer Boost libboost1.81-dev (libboost-dev is 1.74 there); later releases have a newer default.
boost_package() {
    candidate=$(apt-cache policy libboost-dev 2>/dev/null | sed -n 's/^ *Candidate: 1\.\([0-9]*\).*/\1/p')
    if [ "${candidate:-0}" -ge 81 ]; then
        echo libboost-dev
    else
        echo libboost1.81-dev
    fi
}

missing=
want_command() { have_command "$1" || missing="$missing $2"; }
want_package() { have_package "$1" || missing="$missing $1"; }
want_boost() { have_boost || missing="$missing $(boost_package)"; }

collect() {
    missing=
    for group in "$@"; do
        case $group in
            build)
                want_command g++ g++
                want_command cmake cmake
                want_command ninja ninja-build
                want_boost
                for p in libfmt-dev nlohmann-json3-dev libsimdjson-dev libzstd-dev libcli11-dev libmd-dev; do
                    want_package "$p"
                done
                ;;
            test)
                have_package libcatch2-dev || want_package catch2  # libcatch2-dev: Catch2 v3
                want_package libbenchmark-dev
                want_command clang++ clang
                # The sanitizers' run time is a package of its own, of clang's version.
                if ! have_command clang++; then
                    want_package libclang-rt-dev
                elif ! echo 'int main() {}' | clang++ -fsanitize=address -x c++ - -o /dev/null 2>/dev/null; then
                    want_package "libclang-rt-$(clang++ -dumpversion | cut -d. -f1)-dev"
                fi
                want_command clang-tidy clang-tidy
                want_command clang-format clang-format
                want_command pkg-config pkg-config
                ;;
            *)
                say "unknown group '$group' (build, test)"
                exit 2
                ;;
        esac
    done
}

[ $# -gt 0 ] || set -- build

if ! have_command dpkg-query || ! have_command apt-get; then
    say "this is not Debian: nothing is installed for you; docs/development.md lists what is needed"
    exit 0
fi

collect "$@"
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" -ne 0 ]; then
    if have_command sudo && sudo -n true 2>/dev/null; then
        as_root='sudo -n'
    else
        echo "setup: these packages are missing; install them as root and run again:" >&2
        echo "apt-get update && apt-get install -y --no-install-recommends$missing" >&2
        exit 2
    fi
fi

apt() { # apt COMMAND...: waits for another apt, asks nothing
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@" >&2
}

say "apt-get update"
apt update
collect "$@"  # now the package lists are known, and with them the name of Boost's package
say "installing:$missing"
# shellcheck disable=SC2086  # words
if ! apt install -y --no-install-recommends --no-remove $missing; then
    say "apt could not install these without removing others (an older Boost's -dev package, perhaps)."
    say "If that is fine with you:  apt-get install --no-install-recommends$missing"
    exit 2
fi
