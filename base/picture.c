/* See picture.h. */
#include "base/picture.h"

#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/limits.h"

/* ---- its chunks */

#define SIGNATURE "\x89PNG\r\n\x1a\n"
#define SIGNATURE_BYTES 8
#define AROUND 12 /* of a chunk: its length and name before the body, its checksum behind it */
#define HEAD_BYTES 13

static uint32_t number_at(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* The first chunk: 8-bit RGB without interlace, of a size that kiln makes. */
static int parse_head(const uint8_t *body, size_t bytes, uint32_t *width, uint32_t *height,
                      struct kn_err *err) {
    if (bytes != HEAD_BYTES) return kn_err_set(err, KN_EPARSE, "its head has %zu bytes", bytes);
    *width = number_at(body);
    *height = number_at(body + 4);
    if (*width == 0 || *width > KN_SIZE_MAX || *height == 0 || *height > KN_SIZE_MAX)
        return kn_err_set(err, KN_EPARSE, "it is %ux%u", *width, *height);
    if (memcmp(body + 8, "\x08\x02\0\0\0", 5) != 0)
        return kn_err_set(err, KN_EPARSE, "it is not 8-bit RGB without interlace");
    return KN_OK;
}

/* Where the file stands: chunks come in this order. */
enum stand { PART_HEAD, PART_BEFORE, PART_PIXELS, PART_BEHIND, PART_END };

static int parse_chunk(enum stand *at, const uint8_t *name, const uint8_t *body, size_t bytes,
                       uint32_t *width, uint32_t *height, struct kn_err *err) {
    bool head = memcmp(name, "IHDR", 4) == 0, pixels = memcmp(name, "IDAT", 4) == 0,
         end = memcmp(name, "IEND", 4) == 0, optional = name[0] & 0x20;
    if (head != (*at == PART_HEAD) || (pixels && *at == PART_BEHIND) ||
        (end && (bytes > 0 || *at < PART_PIXELS)) || (!head && !pixels && !end && !optional))
        return kn_err_set(err, KN_EPARSE, "a chunk at the wrong place, or of an unknown kind");
    if (head) {
        *at = PART_BEFORE;
        return parse_head(body, bytes, width, height, err);
    }
    *at = end ? PART_END : pixels ? PART_PIXELS : *at == PART_PIXELS ? PART_BEHIND : *at;
    return KN_OK;
}

int kn_picture_parse(const void *data, size_t len, uint32_t *width, uint32_t *height, struct kn_err *err) {
    const uint8_t *p = data, *end = p + len;
    enum stand at = PART_HEAD;
    if (len < SIGNATURE_BYTES || memcmp(p, SIGNATURE, SIGNATURE_BYTES) != 0)
        return kn_err_set(err, KN_EPARSE, "it is no PNG");
    for (p += SIGNATURE_BYTES; at != PART_END;) {
        size_t left = (size_t)(end - p), bytes = left < AROUND ? 0 : number_at(p);
        if (left < AROUND || bytes > left - AROUND)
            return kn_err_set(err, KN_EPARSE, "the file ends too early");
        int rc = parse_chunk(&at, p + 4, p + 8, bytes, width, height, err);
        if (rc) return rc;
        if ((uint32_t)crc32(0, p + 4, (uInt)bytes + 4) != number_at(p + 8 + bytes))
            return kn_err_set(err, KN_EPARSE, "a chunk's checksum is wrong");
        p += AROUND + bytes;
    }
    if (p != end) return kn_err_set(err, KN_EPARSE, "something stands behind the picture's end");
    return KN_OK;
}

/* ---- its pixels */

#define CHUNKS_MAX 64
#define CHUNK_BYTES_MAX (1u << 20) /* of text and the like; the pixels are not counted */

struct decoding {
    const uint8_t *data;
    size_t len, at;
    png_structp png;
    png_infop info;
    struct kn_sha256 *sha;
    png_bytep row;
    struct kn_err *err;
};

static void on_error(png_structp png, png_const_charp text) {
    struct decoding *d = png_get_error_ptr(png);
    kn_err_set(d->err, KN_EPARSE, "%s", text);
    png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp text) {
    (void)png;
    (void)text;
}

static void on_read(png_structp png, png_bytep out, size_t len) {
    struct decoding *d = png_get_io_ptr(png);
    if (len > d->len - d->at) png_error(png, "the file ends too early");
    memcpy(out, d->data + d->at, len);
    d->at += len;
}

/* Leaves by longjmp to d->png's buffer when the file is not right. */
static int decode(struct decoding *d, uint32_t *width, uint32_t *height) {
    png_set_read_fn(d->png, d, on_read);
    png_set_user_limits(d->png, KN_SIZE_MAX, KN_SIZE_MAX);
    png_set_chunk_cache_max(d->png, CHUNKS_MAX);
    png_set_chunk_malloc_max(d->png, CHUNK_BYTES_MAX);
    png_set_crc_action(d->png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
    png_read_info(d->png, d->info);
    *width = png_get_image_width(d->png, d->info);
    *height = png_get_image_height(d->png, d->info);
    if (png_get_color_type(d->png, d->info) != PNG_COLOR_TYPE_RGB ||
        png_get_bit_depth(d->png, d->info) != 8 ||
        png_get_interlace_type(d->png, d->info) != PNG_INTERLACE_NONE)
        return kn_err_set(d->err, KN_EPARSE, "it is not 8-bit RGB without interlace");
    size_t bytes = png_get_rowbytes(d->png, d->info);
    d->row = malloc(bytes);
    d->sha = kn_sha256_create();
    if (!d->row || !d->sha) return kn_err_set(d->err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    for (uint32_t y = 0; y < *height; y++) {
        png_read_row(d->png, d->row, NULL);
        kn_sha256_update(d->sha, d->row, bytes);
    }
    png_read_end(d->png, NULL);
    if (d->at != d->len) return kn_err_set(d->err, KN_EPARSE, "something stands behind the picture's end");
    return KN_OK;
}

int kn_picture_digest(const void *data, size_t len, kn_digest sha256, uint32_t *width, uint32_t *height,
                      struct kn_err *err) {
    uint8_t unused[KN_SHA256_BYTES];
    struct decoding *d = calloc(1, sizeof *d); /* on the heap: it outlives the longjmp */
    if (!d) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    d->data = data;
    d->len = len;
    d->err = err;
    int rc = KN_OK;
    d->png = png_create_read_struct(PNG_LIBPNG_VER_STRING, d, on_error, on_warning);
    d->info = d->png ? png_create_info_struct(d->png) : NULL;
    if (!d->info)
        rc = kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    else if (setjmp(png_jmpbuf(d->png)))
        rc = KN_EPARSE;
    else
        rc = decode(d, width, height);
    if (d->sha) kn_sha256_final(d->sha, rc == KN_OK ? sha256 : unused);
    png_destroy_read_struct(&d->png, &d->info, NULL);
    free(d->row);
    free(d);
    return rc;
}

/* ---- both */

int kn_picture_check(const void *data, size_t len, const struct kn_picture *want, struct kn_err *err) {
    uint32_t width = 0, height = 0;
    kn_digest pixels;
    if (len > KN_IMAGE_BYTES_MAX) return kn_err_set(err, KN_EPARSE, "it has %zu bytes", len);
    int rc = kn_picture_parse(data, len, &width, &height, err);
    if (rc == KN_OK && (width != want->width || height != want->height))
        rc = kn_err_set(err, KN_EPARSE, "it is %ux%u, and %ux%u was asked for", width, height, want->width,
                        want->height);
    if (rc || !want->decoded) return rc;
    rc = kn_picture_digest(data, len, pixels, &width, &height, err);
    if (rc == KN_OK && memcmp(pixels, want->pixels, sizeof pixels) != 0)
        rc = kn_err_set(err, KN_EPARSE, "its pixels are not those that were told of it");
    return rc;
}
