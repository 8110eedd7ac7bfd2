# cmake --install BUILD --prefix DIR: a tree that runs from any folder, with the shared libraries that it needs.
#
#   bin/                kiln, kiln-coordinator, kiln-worker, kiln-render, kiln-redis-server
#   lib/kiln/           shared libraries, and Redis' own program (kiln-redis-server starts it)
#   share/kiln/         models/tiny, examples, systemd units
#   share/doc/kiln/     documents, and the licences of what is in lib/kiln
#
# The programs find lib/kiln by an RPATH (the old kind, which counts for the libraries' own libraries too). What is not taken
# along: glibc, and libstdc++ with libgcc_s, which every Debian and Ubuntu has: that of Debian 12 needs a newer glibc than Ubuntu
# 22.04 has, and CUDA's libraries want the machine's own. So a tree that was built on Debian 12 runs on Debian 12 and 13 and Ubuntu
# 22.04 and 24.04; one from Debian 13 runs on Debian 13. With KILN_BUNDLE off nothing is copied and nothing looked for, as a
# distribution's package wants it.
#
# The target `package` makes kiln-VERSION-linux-MACHINE.tar.gz of it.
set(kiln_programs "")
foreach(program kiln kiln-coordinator kiln-worker kiln-render)
  if(TARGET ${program})
    list(APPEND kiln_programs ${program})
    if(KILN_BUNDLE)
      set_target_properties(${program} PROPERTIES INSTALL_RPATH "$ORIGIN/../lib/kiln")
      target_link_options(${program} PRIVATE -Wl,--disable-new-dtags)
    endif()
    install(TARGETS ${program} RUNTIME DESTINATION bin)
  endif()
endforeach()

install(DIRECTORY models/tiny DESTINATION share/kiln/models PATTERN train EXCLUDE)
install(FILES README.md docs/MANUAL.md deploy/OPERATIONS.md DESTINATION share/doc/kiln)
if(KILN_FARM)
  install(FILES examples/prompts.txt DESTINATION share/kiln/examples)
  install(DIRECTORY deploy/systemd DESTINATION share/kiln PATTERN verify.sh EXCLUDE)
endif()

if(KILN_BUNDLE AND kiln_programs)
  set(kiln_redis "")
  if(KILN_FARM)
    find_program(KILN_REDIS_SERVER redis-server DOC "The Redis that an installed tree takes along")
    if(KILN_REDIS_SERVER)
      file(REAL_PATH ${KILN_REDIS_SERVER} kiln_redis)
      install(PROGRAMS deploy/kiln-redis-server DESTINATION bin)
    else()
      message(STATUS "Install tree: without Redis, redis-server was not found")
    endif()
  endif()
  set(kiln_program_files "")
  foreach(program IN LISTS kiln_programs)
    list(APPEND kiln_program_files $<TARGET_FILE:${program}>)
  endforeach()
  install(CODE "set(KILN_PROGRAMS \"${kiln_program_files}\")
set(KILN_REDIS \"${kiln_redis}\")
set(KILN_DESTINATION \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}\")
include(\"${CMAKE_CURRENT_LIST_DIR}/bundle.cmake\")")
endif()

# What tests/gpu/run.sh runs: the tests of the CUDA backend on a device, and the benchmarks. `cmake --install BUILD --component gpu` adds them
# to a tree, under libexec/kiln/gpu, with their data under share/kiln (their working folder).
if(KILN_TESTS AND TARGET kiln-render)
  set(kiln_gpu_programs "")
  foreach(folder tests/gpu tests/bench)
    get_property(targets DIRECTORY ${PROJECT_SOURCE_DIR}/${folder} PROPERTY BUILDSYSTEM_TARGETS)
    list(FILTER targets INCLUDE REGEX "^(gpu-|bench-gpu-|bench-cuda-)")
    list(APPEND kiln_gpu_programs ${targets})
  endforeach()
  add_custom_target(gpu-programs)
  foreach(program IN LISTS kiln_gpu_programs)
    add_dependencies(gpu-programs ${program})
    if(KILN_BUNDLE)
      set_target_properties(${program} PROPERTIES INSTALL_RPATH "$ORIGIN/../../../lib/kiln")
      target_link_options(${program} PRIVATE -Wl,--disable-new-dtags)
    endif()
    install(TARGETS ${program} RUNTIME DESTINATION libexec/kiln/gpu COMPONENT gpu EXCLUDE_FROM_ALL)
  endforeach()
  install(PROGRAMS tests/gpu/run.sh DESTINATION share/kiln/tests/gpu COMPONENT gpu EXCLUDE_FROM_ALL)
  install(PROGRAMS tests/bench/gpu_vs_diffusers.py tests/bench/random_model.py DESTINATION share/kiln/tests/bench COMPONENT gpu
          EXCLUDE_FROM_ALL)
  install(DIRECTORY tests/golden/pipelines DESTINATION share/kiln/tests/golden COMPONENT gpu EXCLUDE_FROM_ALL)
  install(CODE "execute_process(COMMAND git -C \"${PROJECT_SOURCE_DIR}\" rev-parse --short=12 HEAD
                OUTPUT_FILE \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/share/kiln/commit\" ERROR_QUIET)" COMPONENT gpu EXCLUDE_FROM_ALL)
endif()

set(CPACK_GENERATOR TGZ)
set(CPACK_PACKAGE_NAME kiln)
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGE_FILE_NAME kiln-${PROJECT_VERSION}-linux-${CMAKE_SYSTEM_PROCESSOR})
set(CPACK_STRIP_FILES TRUE)
set(CPACK_VERBATIM_VARIABLES TRUE)
include(CPack)
