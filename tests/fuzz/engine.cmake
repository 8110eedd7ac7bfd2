kn_fuzz_test(NAME fuzz.config SOURCES config.c CORPUS corpus/config WORDS config.words LIBS kiln_engine RUNS 60000)
kn_fuzz_test(NAME fuzz.safetensors SOURCES safetensors.c CORPUS corpus/safetensors LIBS kiln_engine)
kn_fuzz_test(NAME fuzz.tokenizer SOURCES tokenizer.c CORPUS corpus/tokenizer WORDS tokenizer.words LIBS kiln_engine RUNS 100000)
