// SPDX-License-Identifier: Apache-2.0
// The smallest consumer, for as long as examples/translate is not there.
#include <mmusim/version.hpp>

#include <cstdio>

int main()
{
    std::printf("%.*s\n", static_cast<int>(mmusim::kVersion.size()), mmusim::kVersion.data());
}
