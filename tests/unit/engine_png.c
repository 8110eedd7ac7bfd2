/* PNG writing: the pixels come back, the metadata is where readers look for it, the same input gives the same
 * bytes. Chunks are read here by hand, pixels by libpng. */
#include <png.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kiln.h"
#include "tests/unit/check.h"

enum { W = 37, H = 21 };

static void picture(uint8_t *rgb) {
    for (int i = 0; i < W * H * 3; i++) rgb[i] = (uint8_t)(i * 7 + i / 37);
}

static void encode(const char *parameters, struct kn_buf *out) {
    uint8_t rgb[W * H * 3];
    struct kn_err err = {0};
    picture(rgb);
    kn_buf_init(out, 1 << 20);
    CHECK_MSG(!kiln_png_encode(rgb, W, H, parameters, out, &err), "%s", err.text);
}

/* The place of the n-th chunk of this type, −1: none; *at is its ordinal number in the file. */
static const uint8_t *chunk(const struct kn_buf *png, const char *type, int n, size_t *len, int *at) {
    const uint8_t *p = (const uint8_t *)png->data + 8, *end = (const uint8_t *)png->data + png->len;
    for (int i = 0; p + 12 <= end; i++) {
        size_t l = (size_t)p[0] << 24 | (size_t)p[1] << 16 | (size_t)p[2] << 8 | p[3];
        CHECK(l <= (size_t)(end - p) - 12);
        if (!memcmp(p + 4, type, 4) && n-- == 0) {
            *len = l;
            *at = i;
            return p + 8;
        }
        p += 12 + l;
    }
    return NULL;
}

TEST(pixels_come_back_as_they_were) {
    struct kn_buf png;
    encode("x", &png);
    png_image im = {.version = PNG_IMAGE_VERSION};
    CHECK(png_image_begin_read_from_memory(&im, png.data, png.len));
    CHECK(im.width == W && im.height == H);
    im.format = PNG_FORMAT_RGB;
    uint8_t got[W * H * 3], want[W * H * 3];
    CHECK(png_image_finish_read(&im, NULL, got, 0, NULL));
    picture(want);
    CHECK_MEM(got, want, sizeof want);
    kn_buf_fini(&png);
}

TEST(latin_parameters_are_a_text_chunk_in_latin_1) {
    struct kn_buf png;
    encode("a caf\xc3\xa9\nSteps: 20, Seed: 1", &png);
    size_t len;
    int at;
    const uint8_t *c = chunk(&png, "tEXt", 0, &len, &at);
    CHECK(c);
    CHECK_MEM(c, "parameters\0a caf\xe9\nSteps: 20, Seed: 1", len);
    kn_buf_fini(&png);
}

TEST(other_parameters_are_an_international_text_chunk) {
    static const char text[] = "\xe7\x8c\xab, \xe2\x80\x9cq\xe2\x80\x9d";
    struct kn_buf png;
    encode(text, &png);
    size_t len;
    int at;
    CHECK(!chunk(&png, "tEXt", 0, &len, &at));
    const uint8_t *c = chunk(&png, "iTXt", 0, &len, &at);
    CHECK(c);
    CHECK_INT(len, 10 + 1 + 2 + 1 + 1 + strlen(text)); /* keyword 0, two flags, two empty tags */
    CHECK_MEM(c, "parameters\0\0\0\0\0", 15);
    CHECK_MEM(c + 15, text, strlen(text));
    kn_buf_fini(&png);
}

TEST(the_synthetic_mark_stands_before_the_pixels) {
    struct kn_buf png;
    encode(NULL, &png);
    size_t len;
    int mark, data;
    CHECK(!chunk(&png, "tEXt", 0, &len, &mark));
    CHECK(chunk(&png, "IDAT", 0, &len, &data));
    const uint8_t *c = chunk(&png, "iTXt", 0, &len, &mark);
    CHECK(c && mark < data && !strcmp((const char *)c, "XML:com.adobe.xmp"));
    static const char want[] = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia";
    CHECK(memmem(c, len, want, sizeof want - 1));
    CHECK(memmem(c, len, "Iptc4xmpExt:DigitalSourceType", 29));
    kn_buf_fini(&png);
}

TEST(the_same_input_gives_the_same_bytes) {
    struct kn_buf a, b;
    encode("same", &a);
    encode("same", &b);
    CHECK_INT(a.len, b.len);
    CHECK_MEM(a.data, b.data, a.len);
    kn_buf_fini(&a);
    kn_buf_fini(&b);
}

TEST(a_buffer_that_is_too_small_is_an_error_and_stays_as_it_was) {
    uint8_t rgb[W * H * 3];
    struct kn_buf out;
    struct kn_err err = {0};
    picture(rgb);
    kn_buf_init(&out, 64);
    CHECK(!kn_buf_appends(&out, "before"));
    CHECK_INT(kiln_png_encode(rgb, W, H, "x", &out, &err), KN_ELIMIT);
    CHECK_INT(out.len, 6);
    kn_buf_fini(&out);
}
