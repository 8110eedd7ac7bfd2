kn_fuzz_test(NAME fuzz.options SOURCES options.c CORPUS corpus/options WORDS options.words LIBS kn_base)
kn_fuzz_test(NAME fuzz.prompts SOURCES prompts.c CORPUS corpus/prompts WORDS prompts.words LIBS kn_base)
