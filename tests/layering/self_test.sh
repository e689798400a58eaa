#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Does check.sh find what it should, where it should, and nothing else? A made-up tree with known faults.
set -eu
check=$(cd "$(dirname "$0")" && pwd)/check.sh
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
spdx='// SPDX-License-Identifier: Apache-2.0'

put() { # put FILE LINE...
    mkdir -p "$tree/$(dirname "$1")"
    file=$tree/$1
    shift
    printf '%s\n' "$@" > "$file"
}
failed=0
expect() { # expect WHAT EXPECTED_OUTPUT
    actual=$("$check" "$tree") && code=0 || code=$?
    wanted_code=0
    [ -z "$2" ] || wanted_code=1
    if [ "$actual" != "$2" ] || [ "$code" -ne "$wanted_code" ]; then
        printf 'FAILED: %s\n--- expected (exit %s)\n%s\n--- got (exit %s)\n%s\n' \
            "$1" "$wanted_code" "$2" "$code" "$actual"
        failed=1
    fi
    rm -rf "${tree:?}"/*
}

put include/mmusim/words/pte.hpp "$spdx" '#include <cstdint>' '#include <mmusim/words/memory.hpp>'
put include/mmusim/pagewalk/walk.hpp "$spdx" '#include <mmusim/words/pte.hpp>' '#include <nlohmann/json_fwd.hpp>'
put src/pagewalk/walk.cpp "$spdx" '#include "walk_detail.hpp"' '#include "pagewalk/other.hpp"' \
    '#include <machine/endian.h>' '#include <simdjson.h>' '#include <mmusim/version.hpp>'
put src/replay/replay.cpp "$spdx" '#include <mmusim/trace/reader.hpp>' '#include <mmusim/shadow/mmu.hpp>'
put tools/mmusim/main.cpp "$spdx" '#include <CLI/CLI.hpp>' '#include <mmusim/replay/replay.hpp>' '#include "table.hpp"'
put scripts/x.sh '#!/bin/sh' '# SPDX-License-Identifier: Apache-2.0'
expect 'a clean tree' ''

put include/mmusim/words/pte.hpp "$spdx" '#pragma once' '#include <mmusim/shadow/mmu.hpp>'
expect 'upwards' 'include/mmusim/words/pte.hpp:3: words (floor 0) includes mmusim/shadow/mmu.hpp (floor 2)'

put src/pagewalk/walk.cpp "$spdx" '  #  include "mmusim/p2m/p2m.hpp"  // sideways'
expect 'sideways, spaces, quotes' \
    'src/pagewalk/walk.cpp:2: pagewalk (floor 1) includes mmusim/p2m/p2m.hpp (floor 1)'

put src/words/a.cpp "$spdx" '#include "../machine/wiring.hpp"' '#include "trace/detail.hpp"'
expect 'private headers' 'src/words/a.cpp:2: words (floor 0) includes ../machine/wiring.hpp (floor 4)
src/words/a.cpp:3: words (floor 0) includes trace/detail.hpp (floor 5)'

put src/machine/m.cpp "$spdx" '#include <mmusim/attic/x.hpp>'
put src/attic/x.cpp "$spdx"
expect 'unknown rooms' 'src/attic/x.cpp:1: is in no known room
src/machine/m.cpp:2: includes mmusim/attic/x.hpp: no such room'

put include/mmusim/trace/reader.hpp "$spdx" '#include <simdjson.h>' '#include <nlohmann/json.hpp>' '#include <CLI/CLI.hpp>'
expect 'heavy headers' 'include/mmusim/trace/reader.hpp:2: heavy header <simdjson.h> in a public header
include/mmusim/trace/reader.hpp:3: heavy header <nlohmann/json.hpp> in a public header
include/mmusim/trace/reader.hpp:4: heavy header <CLI/CLI.hpp> in a public header'

put src/words/b.cpp '#include <cstdint>'
put scripts/y.sh '#!/bin/sh' 'true'
expect 'no licence line' 'scripts/y.sh:1: no SPDX-License-Identifier line on top
src/words/b.cpp:1: no SPDX-License-Identifier line on top'

exit $failed
