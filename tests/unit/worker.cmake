# worker/: what it holds, its simulated engine, and a whole worker against a coordinator played by the test.
kn_unit_test(NAME worker.shards SOURCES worker_shards.c LIBS kn_worker)
kn_unit_test(NAME worker.sim SOURCES worker_sim.c LIBS kn_worker)
kn_unit_test(NAME worker.whole SOURCES worker_whole.c LIBS kn_worker)
add_test(NAME worker.promise_versions COMMAND test-worker-whole promise_versions)
add_test(NAME worker.whole_staged COMMAND test-worker-whole)
set_tests_properties(worker.whole_staged PROPERTIES ENVIRONMENT "KILN_TEST_SIM=,staged=1" TIMEOUT 120)
kn_unit_test(NAME worker.models SOURCES worker_models.c LIBS kn_worker)
target_compile_definitions(test-worker-models PRIVATE KILN_SOURCE="${PROJECT_SOURCE_DIR}")
kn_unit_test(NAME worker.program SOURCES worker_program.c LIBS kn_base)
target_compile_definitions(test-worker-program PRIVATE KILN_SOURCE="${PROJECT_SOURCE_DIR}" KILN_WORKER="$<TARGET_FILE:kiln-worker>")
add_dependencies(test-worker-program kiln-worker)

# GPUs without one: a shared object in NVML's place, under its own name, so that programs find it too (LD_LIBRARY_PATH).
add_library(nvml-fake SHARED nvml_fake.c)
set_target_properties(nvml-fake PROPERTIES OUTPUT_NAME nvidia-ml SUFFIX .so.1
                      LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/fake-nvml)
kn_unit_test(NAME worker.device SOURCES worker_device.c LIBS kn_worker)
target_compile_definitions(test-worker-device PRIVATE KILN_FAKE_NVML="$<TARGET_FILE:nvml-fake>")
add_dependencies(test-worker-device nvml-fake)
kn_unit_test(NAME worker.supervise SOURCES worker_supervise.c LIBS kn_worker)
target_compile_definitions(test-worker-program PRIVATE KILN_FAKE_NVML_DIR="${PROJECT_BINARY_DIR}/fake-nvml")
add_dependencies(test-worker-program nvml-fake)
# Each bounds a time: how long a process may take to end, or to start again.
set_tests_properties(worker.whole worker.whole_staged worker.program worker.device worker.supervise PROPERTIES RUN_SERIAL TRUE)
