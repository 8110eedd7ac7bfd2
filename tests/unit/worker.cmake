# worker/: what it holds, its simulated engine, and a whole worker against a coordinator played by the test.
kn_unit_test(NAME worker.leases SOURCES worker_leases.c LIBS kn_worker)
kn_unit_test(NAME worker.sim SOURCES worker_sim.c LIBS kn_worker)
kn_unit_test(NAME worker.whole SOURCES worker_whole.c LIBS kn_worker)
kn_unit_test(NAME worker.models SOURCES worker_models.c LIBS kn_worker)
target_compile_definitions(test-worker-models PRIVATE KILN_SOURCE="${PROJECT_SOURCE_DIR}")
kn_unit_test(NAME worker.program SOURCES worker_program.c LIBS kn_base)
target_compile_definitions(test-worker-program PRIVATE KILN_SOURCE="${PROJECT_SOURCE_DIR}" KILN_WORKER="$<TARGET_FILE:kiln-worker>")
add_dependencies(test-worker-program kiln-worker)
