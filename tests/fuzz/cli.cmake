# What kiln reads back from a folder that anybody may have written.
kn_fuzz_test(NAME fuzz.manifest SOURCES manifest.c CORPUS corpus/manifest WORDS manifest.words LIBS kiln_cli)
kn_fuzz_test(NAME fuzz.picture SOURCES picture.c CORPUS corpus/picture RUNS 20000 LIBS kiln_cli PkgConfig::ZLIB)
kn_fuzz_test(NAME fuzz.name_pattern SOURCES name_pattern.c CORPUS corpus/name_pattern WORDS name_pattern.words LIBS kiln_cli RUNS 400000 SIZE 600)
