# proto/: messages, chunks, sockets.
kn_unit_test(NAME proto.codec SOURCES proto_codec.c proto_messages.c LIBS kn_proto)
kn_unit_test(NAME proto.chunk SOURCES proto_chunk.c LIBS kn_proto PkgConfig::ZLIB)
