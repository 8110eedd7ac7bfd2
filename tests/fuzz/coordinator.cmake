# coordinator/: the core under any history of events.
kn_fuzz_test(NAME fuzz.core SOURCES core.c CORPUS corpus/core RUNS 20000 SIZE 2048 LIBS kiln_core)
