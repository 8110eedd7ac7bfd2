# proto/: messages, chunks, sockets.
kn_unit_test(NAME proto.codec SOURCES proto_codec.c proto_messages.c LIBS kn_proto)
target_compile_definitions(test-proto-codec PRIVATE KILN_SOURCE="${PROJECT_SOURCE_DIR}")
add_test(NAME proto.promise_versions COMMAND test-proto-codec promise_versions)
kn_unit_test(NAME proto.chunk SOURCES proto_chunk.c LIBS kn_proto PkgConfig::ZLIB)
kn_unit_test(NAME proto.wire SOURCES proto_wire.c proto_messages.c LIBS kn_proto)
add_test(NAME proto.promise_bounds COMMAND test-proto-wire promise_bounds)
kn_unit_test(NAME promise.gate SOURCES promise_gate.c LIBS kn_proto)
kn_unit_test(NAME proto.promise_keys SOURCES proto_keys.c proto_messages.c LIBS kn_proto PkgConfig::ZMQ)
set_tests_properties(proto.wire proto.promise_keys promise.gate PROPERTIES RUN_SERIAL TRUE) # TCP ports
