// SPDX-License-Identifier: Apache-2.0
#include <mmusim/trace/trace_error.hpp>

#include <utility>

#include <fmt/format.h>

namespace mmusim {

namespace {

std::string one_line(const TracePlace& place, const std::string& message, const std::string& key)
{
    std::string text = place.file;
    if (place.line != 0) text += fmt::format(":{}", place.line);
    if (place.line != 0 && place.column != 0) text += fmt::format(":{}", place.column);
    if (!text.empty()) text += ": ";
    if (!key.empty()) text += fmt::format("key \"{}\": ", key);
    return text + message;
}

}  // namespace

TraceError::TraceError(TracePlace place, const std::string& message, std::string key)
    : std::runtime_error{one_line(place, message, key)}, place_{std::move(place)}, key_{std::move(key)}
{
}

}  // namespace mmusim
