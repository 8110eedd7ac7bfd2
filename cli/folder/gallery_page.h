/* gallery.html as bytes; its source is made by CMake (cli/folder/gallery.cmake). */
#ifndef KILN_CLI_FOLDER_GALLERY_PAGE_H
#define KILN_CLI_FOLDER_GALLERY_PAGE_H

#include <stddef.h>

extern const char gallery_page[];
extern const size_t gallery_page_len;

#endif
