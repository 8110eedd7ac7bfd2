/* See pixels.h. */
#include "cli/folder/pixels.h"

#include <png.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/limits.h"

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

int pixels_digest(const void *data, size_t len, uint8_t sha256[32], uint32_t *width, uint32_t *height,
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

static uint32_t number_at(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Latin-1, as tEXt has it. */
static char *from_latin1(const uint8_t *text, size_t len) {
    char *out = malloc(2 * len + 1), *to = out;
    for (size_t i = 0; out && i < len; i++) {
        if (text[i] < 0x80) {
            *to++ = (char)text[i];
        } else {
            *to++ = (char)(0xc0 | text[i] >> 6);
            *to++ = (char)(0x80 | (text[i] & 0x3f));
        }
    }
    if (out) *to = '\0';
    return out;
}

char *pixels_parameters(const void *data, size_t len) {
    static const char keyword[] = "parameters";      /* with its 0 */
    static const uint8_t itxt_head[] = {0, 0, 0, 0}; /* not compressed, no language, no translated keyword */
    const uint8_t *p = data, *end = p + len;
    if (len < 8 || memcmp(p, "\x89PNG\r\n\x1a\n", 8) != 0) return NULL;
    for (p += 8; end - p >= 12;) {
        size_t bytes = number_at(p);
        const uint8_t *body = p + 8;
        if (bytes > (size_t)(end - p) - 12) return NULL;
        bool plain = memcmp(p + 4, "tEXt", 4) == 0, wide = memcmp(p + 4, "iTXt", 4) == 0;
        if ((plain || wide) && bytes >= sizeof keyword && memcmp(body, keyword, sizeof keyword) == 0) {
            body += sizeof keyword;
            bytes -= sizeof keyword;
            if (plain) return from_latin1(body, bytes);
            if (bytes < sizeof itxt_head || memcmp(body, itxt_head, sizeof itxt_head) != 0) return NULL;
            return strndup((const char *)body + sizeof itxt_head, bytes - sizeof itxt_head);
        }
        p += bytes + 12;
    }
    return NULL;
}
