/* Small pictures for tests, as a worker could have made them. */
#ifndef KILN_TESTS_PNG_OF_H
#define KILN_TESTS_PNG_OF_H

#include "base/hash.h"

struct png_of {
    uint8_t bytes[1024]; /* what it really has: len */
    size_t len;
    kn_digest sha256, pixels; /* of the file, of its RGB bytes */
};

/* A picture of one grey, the first letter of the text; the whole text stands in the file. Sides of at most 64. */
void png_of(const char *text, uint32_t width, uint32_t height, struct png_of *out);
/* The same with other bytes in place of the deflated pixels. */
void png_of_bytes(const void *deflated, size_t len, uint32_t width, uint32_t height, struct png_of *out);

#endif
