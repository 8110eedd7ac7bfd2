# coordinator/: the core under any history of events.
kn_fuzz_test(NAME fuzz.core SOURCES core.c CORPUS corpus/core RUNS 20000 SIZE 2048 LIBS kiln_core)
# The coordinator under peers that say anything: an input is a farm and some forty messages.
if(TARGET kn_server)
  find_package(PkgConfig REQUIRED)
  pkg_check_modules(ZMQ REQUIRED IMPORTED_TARGET libzmq)
  kn_fuzz_test(NAME fuzz.talk SOURCES talk.c ${PROJECT_SOURCE_DIR}/tests/unit/proto_messages.c
    ${PROJECT_SOURCE_DIR}/tests/unit/store_memory.c CORPUS corpus/talk RUNS 400 SIZE 1024 LIBS kn_server PkgConfig::ZMQ)
endif()
