# SPDX-License-Identifier: Apache-2.0
# The library: everything in src/, with the headers in include/. A new file needs no change here.

find_package(Boost 1.81 CONFIG REQUIRED)  # 1.81: the first with boost::unordered_flat_map
find_package(fmt REQUIRED)
find_package(nlohmann_json 3.11 REQUIRED)
find_package(Threads REQUIRED)
find_package(simdjson REQUIRED)
find_package(zstd CONFIG REQUIRED)

# zstd's package may hold the shared library, the static one, or both.
set(MMUSIM_ZSTD_TARGET zstd::libzstd_shared)
if(NOT TARGET zstd::libzstd_shared)
    set(MMUSIM_ZSTD_TARGET zstd::libzstd_static)
endif()

configure_file(include/mmusim/version.hpp.in ${PROJECT_BINARY_DIR}/include/mmusim/version.hpp @ONLY)

file(GLOB_RECURSE mmusim_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/*.cpp)
file(GLOB_RECURSE mmusim_headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/include/*.hpp)

include(cmake/EmbedProfiles.cmake)

add_library(mmusim ${mmusim_sources} ${mmusim_embedded_profiles})
add_library(mmusim::mmusim ALIAS mmusim)
mmusim_own(mmusim)
set_target_properties(mmusim PROPERTIES
    LINKER_LANGUAGE CXX
    POSITION_INDEPENDENT_CODE ON  # so that a user's shared library or Python module may link the static one
    VERSION ${PROJECT_VERSION}
    SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
    VERIFY_INTERFACE_HEADER_SETS ON)  # test "public_headers": each compiles on its own
target_sources(mmusim PUBLIC FILE_SET HEADERS
    BASE_DIRS ${PROJECT_SOURCE_DIR}/include ${PROJECT_BINARY_DIR}/include
    FILES ${mmusim_headers} ${PROJECT_BINARY_DIR}/include/mmusim/version.hpp)
target_include_directories(mmusim PRIVATE ${PROJECT_SOURCE_DIR}/src)

# JSON_DIAGNOSTICS makes nlohmann's errors carry the path of the value. It is part of the library's inline namespace, so
# whoever passes a json value to us must compile with the same setting: hence PUBLIC.
target_compile_definitions(mmusim PUBLIC JSON_DIAGNOSTICS=1)
target_link_libraries(mmusim
    PUBLIC Boost::headers fmt::fmt nlohmann_json::nlohmann_json
    PRIVATE Threads::Threads simdjson::simdjson ${MMUSIM_ZSTD_TARGET})
