# kx_computing_ops: the ops that compute, as kernels/backend.h lists them.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/backend.h)
file(READ ${PROJECT_SOURCE_DIR}/kernels/backend.h backend_h)
string(REGEX MATCH "define KX_COMPUTING_OPS\\(X\\)[^/]*" kx_computing_ops "${backend_h}")
string(REGEX MATCHALL " X\\([a-z0-9_]+," kx_computing_ops "${kx_computing_ops}")
list(TRANSFORM kx_computing_ops REPLACE " X\\(([a-z0-9_]+)," "\\1")
if(NOT kx_computing_ops)
  message(FATAL_ERROR "kernels/backend.h: KX_COMPUTING_OPS lists no op")
endif()
