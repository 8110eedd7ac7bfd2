# gallery.html becomes an array of bytes in the program: include(gallery.cmake), then add ${gallery_page_source} to the sources.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/gallery.html)
file(READ ${CMAKE_CURRENT_LIST_DIR}/gallery.html page HEX)
string(REGEX REPLACE "(................................)" "\\1\n" page "${page}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "'\\\\x\\1'," page "${page}")
set(gallery_page_source ${CMAKE_CURRENT_BINARY_DIR}/gallery_page.c)
file(CONFIGURE OUTPUT ${gallery_page_source} @ONLY CONTENT [[
/* Made from cli/folder/gallery.html. */
#include "cli/folder/gallery_page.h"

const char gallery_page[] = {
@page@};
const size_t gallery_page_len = sizeof gallery_page;
]])
