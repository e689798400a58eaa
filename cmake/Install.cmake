# SPDX-License-Identifier: Apache-2.0
# The library, its headers, the CMake package and mmusim.pc. (tools/ installs the command.)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/mmusim)
install(TARGETS mmusim EXPORT mmusim FILE_SET HEADERS)
install(EXPORT mmusim NAMESPACE mmusim:: FILE mmusimTargets.cmake DESTINATION ${package_dir})

# For people to look at and to start their own from; the library has them inside.
install(DIRECTORY ${PROJECT_SOURCE_DIR}/profiles DESTINATION ${CMAKE_INSTALL_DATADIR}/mmusim FILES_MATCHING PATTERN "*.json")

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/mmusimConfig.cmake.in
    ${PROJECT_BINARY_DIR}/package/mmusimConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/package/mmusimConfigVersion.cmake
    COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/package/mmusimConfig.cmake
              ${PROJECT_BINARY_DIR}/package/mmusimConfigVersion.cmake
        DESTINATION ${package_dir})

# mmusim.pc finds its prefix from its own place, so that the installed tree may be moved.
file(RELATIVE_PATH MMUSIM_PC_TO_PREFIX "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
configure_file(${PROJECT_SOURCE_DIR}/cmake/mmusim.pc.in ${PROJECT_BINARY_DIR}/package/mmusim.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/package/mmusim.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
