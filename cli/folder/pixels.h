/* The text in a picture file that anybody may have written. */
#ifndef KILN_CLI_FOLDER_PIXELS_H
#define KILN_CLI_FOLDER_PIXELS_H

#include <stddef.h>

/* The `parameters` text of a PNG that kiln wrote, in UTF-8; the caller frees. NULL: it has none, or is no PNG. */
char *pixels_parameters(const void *data, size_t len);

#endif
