/* The pixels of a picture file that anybody may have written. */
#ifndef KILN_CLI_FOLDER_PIXELS_H
#define KILN_CLI_FOLDER_PIXELS_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* Decodes a PNG of `len` bytes with limits: the SHA-256 of its RGB bytes and its size. KN_EPARSE with
 * libpng's words. Any thread. */
KN_MUST_USE int pixels_digest(const void *data, size_t len, uint8_t sha256[32], uint32_t *width,
                              uint32_t *height, struct kn_err *err);

/* The `parameters` text of a PNG that kiln wrote, in UTF-8; the caller frees. NULL: it has none, or is no PNG. */
char *pixels_parameters(const void *data, size_t len);

#endif
