# The engine's parts that need no weights.
kn_unit_test(NAME engine.config SOURCES engine_config.c LIBS kiln_engine)
kn_unit_test(NAME engine.png SOURCES engine_png.c LIBS kiln_engine)
kn_unit_test(NAME engine.safetensors SOURCES engine_safetensors.c LIBS kiln_engine)
kn_unit_test(NAME engine.samplers SOURCES engine_samplers.c LIBS kiln_engine)
kn_unit_test(NAME engine.tokenizer SOURCES engine_tokenizer.c LIBS kiln_engine)
