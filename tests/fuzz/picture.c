/* A picture as kiln verify decodes it. Its chunks' checksums are set right first, or hardly any change would
 * come past them. A success has a size within its range. */
#include <string.h>
#include <zlib.h>

#include "base/limits.h"
#include "base/picture.h"
#include "tests/fuzz/fuzz.h"

static uint32_t read32(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

int kn_fuzz(const uint8_t *data, size_t size) {
    uint8_t *copy = malloc(size + 1), sha[32];
    uint32_t width = 0, height = 0;
    struct kn_err err = {0};
    FUZZ_CHECK(copy != NULL);
    memcpy(copy, data, size);
    for (size_t at = 8; at + 12 <= size;) {
        uint32_t len = read32(copy + at);
        if (len > size - at - 12) break;
        uint32_t crc = (uint32_t)crc32(0, copy + at + 4, len + 4);
        for (int k = 0; k < 4; k++) copy[at + 8 + len + (size_t)k] = (uint8_t)(crc >> (24 - 8 * k));
        at += 12 + (size_t)len;
    }
    int rc = kn_picture_digest(copy, size, sha, &width, &height, &err);
    if (rc)
        FUZZ_CHECK(err.text[0] != '\0');
    else
        FUZZ_CHECK(width > 0 && width <= KN_SIZE_MAX && height > 0 && height <= KN_SIZE_MAX);
    if (rc == 0)
        FUZZ_CHECK(kn_picture_parse(copy, size, &width, &height, &err) == 0 || strstr(err.text, "chunk"));
    free(copy);
    return 0;
}
