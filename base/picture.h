/* A picture file as kiln's workers make it (a PNG of 8-bit RGB without interlace), by somebody who may be hostile or
 * broken. Libpng and zlib are seen here and in the engine alone, but for the packing of chunks. Any thread. */
#ifndef KN_BASE_PICTURE_H
#define KN_BASE_PICTURE_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/hash.h"

/* How a picture must be. */
struct kn_picture {
    uint32_t width, height;
    bool decoded; /* it is decoded, and its RGB bytes have this digest; else only its chunks are looked at */
    kn_digest pixels; /* SHA-256 */
};

/* The file is whole: signature, chunks, their order and checksums; nothing is inflated. A pass over its bytes.
 * KN_EPARSE. */
KN_MUST_USE int kn_picture_parse(const void *data, size_t len, uint32_t *width, uint32_t *height,
                                 struct kn_err *err);
/* Decodes it with limits: the SHA-256 of its RGB bytes and its size. KN_EPARSE with libpng's words; KN_ENOMEM. */
KN_MUST_USE int kn_picture_digest(const void *data, size_t len, kn_digest sha256, uint32_t *width,
                                  uint32_t *height, struct kn_err *err);
/* It is what it must be. KN_EPARSE says in words what is wrong; KN_ENOMEM. */
KN_MUST_USE int kn_picture_check(const void *data, size_t len, const struct kn_picture *want,
                                 struct kn_err *err);

#endif
