kn_fuzz_test(NAME fuzz.prompts SOURCES prompts.c CORPUS corpus/prompts WORDS prompts.words LIBS kn_base)
