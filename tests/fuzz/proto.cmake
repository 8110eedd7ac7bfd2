kn_fuzz_test(NAME fuzz.proto SOURCES proto.c CORPUS corpus/proto LIBS kn_proto PkgConfig::ZLIB)
