# SPDX-License-Identifier: Apache-2.0
# The CPU profiles in profiles/, compiled into the library. Included, it sets mmusim_embedded_profiles, a source that the
# build makes by running this file as a script.
if(CMAKE_SCRIPT_MODE_FILE)
    string(REPLACE "," ";" names "${NAMES}")
    set(entries "")
    foreach(name IN LISTS names)
        file(READ ${DIRECTORY}/${name}.json text)
        string(APPEND entries "        {\"${name}\", R\"json(${text})json\"},\n")
    endforeach()
    file(WRITE ${OUTPUT} "// Made from profiles/*.json by cmake/EmbedProfiles.cmake.
#include <mmusim/cpu/cpu_profile.hpp>

namespace mmusim {

const std::vector<BundledCpuProfile>& bundled_cpu_profiles()
{
    static const std::vector<BundledCpuProfile> profiles{
${entries}    };
    return profiles;
}

}  // namespace mmusim
")
    return()
endif()

# Listed in this order; what is not named here comes last.
set(mmusim_profile_names
    nehalem sandy_bridge haswell skylake skylake_sp ice_lake golden_cove zen1 zen2 zen3 zen4 zen5 drcachesim none)
file(GLOB mmusim_profile_files CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/profiles/*.json)
foreach(file IN LISTS mmusim_profile_files)
    get_filename_component(name ${file} NAME_WE)
    list(APPEND mmusim_profile_names ${name})
endforeach()
list(REMOVE_DUPLICATES mmusim_profile_names)
list(JOIN mmusim_profile_names "," mmusim_profile_names)

set(mmusim_embedded_profiles ${PROJECT_BINARY_DIR}/profiles/bundled_cpu_profiles.cpp)
add_custom_command(
    OUTPUT ${mmusim_embedded_profiles}
    COMMAND ${CMAKE_COMMAND} -DNAMES=${mmusim_profile_names} -DDIRECTORY=${PROJECT_SOURCE_DIR}/profiles
            -DOUTPUT=${mmusim_embedded_profiles} -P ${CMAKE_CURRENT_LIST_FILE}
    DEPENDS ${mmusim_profile_files} ${CMAKE_CURRENT_LIST_FILE}
    COMMENT "Embedding the CPU profiles"
    VERBATIM)
