/* See png_of.h. */
#include "tests/unit/png_of.h"

#include <zlib.h>

#include "tests/unit/check.h"

static uint8_t *put32(uint8_t *p, uint32_t v) {
    for (int k = 24; k >= 0; k -= 8) *p++ = (uint8_t)(v >> k);
    return p;
}

static void chunk_of(struct png_of *o, const char *name, const void *body, size_t len) {
    uint8_t *p = o->bytes + o->len;
    CHECK(o->len + len + 12 <= sizeof o->bytes);
    memcpy(put32(p, (uint32_t)len), name, 4);
    if (len) memcpy(p + 8, body, len);
    put32(p + 8 + len, (uint32_t)crc32(0, p + 4, (uInt)len + 4));
    o->len += len + 12;
}

static void begin_png(struct png_of *o, uint32_t width, uint32_t height, const char *text) {
    uint8_t head[13] = {[8] = 8, [9] = 2};
    char note[64] = "t";
    put32(put32(head, width), height);
    memcpy(o->bytes, "\x89PNG\r\n\x1a\n", 8);
    o->len = 8;
    chunk_of(o, "IHDR", head, sizeof head);
    snprintf(note + 2, sizeof note - 2, "%s", text);
    chunk_of(o, "tEXt", note, 2 + strlen(note + 2));
}

void png_of_bytes(const void *deflated, size_t len, uint32_t width, uint32_t height, struct png_of *out) {
    begin_png(out, width, height, "");
    chunk_of(out, "IDAT", deflated, len);
    chunk_of(out, "IEND", NULL, 0);
    kn_sha256(out->bytes, out->len, out->sha256);
    memset(out->pixels, 0, sizeof out->pixels);
}

void png_of(const char *text, uint32_t width, uint32_t height, struct png_of *out) {
    static uint8_t rows[64 * (1 + 3 * 64)], rgb[64 * 3 * 64], packed[512];
    size_t line = 1 + 3 * (size_t)width;
    uLongf len = sizeof packed;
    CHECK(width <= 64 && height <= 64);
    memset(rgb, text[0], sizeof rgb);
    for (uint32_t y = 0; y < height; y++) {
        rows[y * line] = 0; /* no filter */
        memset(rows + y * line + 1, text[0], line - 1);
    }
    CHECK_INT(compress2(packed, &len, rows, (uLong)(height * line), 9), Z_OK);
    begin_png(out, width, height, text);
    chunk_of(out, "IDAT", packed, len);
    chunk_of(out, "IEND", NULL, 0);
    kn_sha256(out->bytes, out->len, out->sha256);
    kn_sha256(rgb, (size_t)height * 3 * width, out->pixels);
}
