# The engine's parts that need no weights.
kn_unit_test(NAME engine.config SOURCES engine_config.c LIBS kiln_engine)
kn_unit_test(NAME engine.png SOURCES engine_png.c LIBS kiln_engine)
kn_unit_test(NAME engine.safetensors SOURCES engine_safetensors.c LIBS kiln_engine)
kn_unit_test(NAME engine.samplers SOURCES engine_samplers.c LIBS kiln_engine)
kn_unit_test(NAME engine.tokenizer SOURCES engine_tokenizer.c LIBS kiln_engine)
# Those that need the backend and the networks.
if(TARGET kiln-render)
  kn_unit_test(NAME engine.networks SOURCES engine_networks.c LIBS kiln_engine)
  target_compile_definitions(test-engine-networks PRIVATE KILN_GOLDEN_DIR="${PROJECT_SOURCE_DIR}/tests/golden")
  kn_unit_test(NAME engine.memory SOURCES engine_memory.c LIBS kiln_engine)
  target_compile_definitions(test-engine-memory PRIVATE KILN_GOLDEN_DIR="${PROJECT_SOURCE_DIR}/tests/golden")
  kn_unit_test(NAME engine.lora SOURCES engine_lora.c LIBS kiln_engine)
  target_compile_definitions(test-engine-lora PRIVATE KILN_GOLDEN_DIR="${PROJECT_SOURCE_DIR}/tests/golden")
  kn_unit_test(NAME engine.torture SOURCES engine_torture.c LIBS kiln_engine)
  target_compile_definitions(test-engine-torture PRIVATE KILN_GOLDEN_DIR="${PROJECT_SOURCE_DIR}/tests/golden")
  target_link_options(test-engine-torture PRIVATE
                      -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=aligned_alloc,--wrap=strdup)
endif()
