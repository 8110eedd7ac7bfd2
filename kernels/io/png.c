/* PNG writing (libpng). See kiln.h. Pure; any thread.
 * Chunk order: IHDR, tEXt or iTXt "parameters", iTXt "XML:com.adobe.xmp", IDAT, IEND. No time, no host: the
 * same input gives the same bytes (with one version of zlib). Filter and level: adaptive filters cost more
 * time than a picture of a diffusion model repays; see LEVEL for what was measured. */
#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kiln.h"

#define LEVEL 4

static const char xmp[] =
    "<?xpacket begin=\"\xef\xbb\xbf\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>"
    "<x:xmpmeta xmlns:x=\"adobe:ns:meta/\"><rdf:RDF "
    "xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">"
    "<rdf:Description rdf:about=\"\" xmlns:Iptc4xmpExt=\"http://iptc.org/std/Iptc4xmpExt/2008-02-29/\">"
    "<Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    "</Iptc4xmpExt:DigitalSourceType></rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end=\"r\"?>";

struct sink {
    struct kn_buf *out;
    int rc;
    char text[256];
};

static void on_write(png_structp png, png_bytep data, png_size_t len) {
    struct sink *s = png_get_io_ptr(png);
    s->rc = kn_buf_append(s->out, data, len);
    if (s->rc) png_error(png, kn_err_words(s->rc));
}

static void on_flush(png_structp png) {
    (void)png;
}

static void on_error(png_structp png, png_const_charp text) {
    struct sink *s = png_get_error_ptr(png);
    if (!s->rc) s->rc = KN_EINTERNAL;
    strncpy(s->text, text, sizeof s->text - 1);
    longjmp(png_jmpbuf(png), 1);
}

static void on_warning(png_structp png, png_const_charp text) {
    (void)png, (void)text;
}

/* UTF-8 to Latin-1 when every character fits it and is one that tEXt allows; NULL: it does not fit (or no
 * memory: the caller's iTXt then fails on its own). */
static __attribute__((noinline)) char *latin1(const char *s) {
    char *out = malloc(strlen(s) + 1), *p = out;
    for (const unsigned char *c = (const unsigned char *)s; out && *c;) {
        unsigned v = *c++;
        if (v >= 0x80) {
            if ((v != 0xc2 && v != 0xc3) || (*c & 0xc0) != 0x80) goto no;
            v = (v & 3) << 6 | (*c++ & 0x3f);
            if (v < 0xa0) goto no;
        } else if (v < 0x20 && v != '\n') {
            goto no;
        }
        *p++ = (char)v;
    }
    if (out) *p = 0;
    return out;
no:
    free(out);
    return NULL;
}

static void put_text(png_structp png, png_infop info, const char *key, const char *text, bool utf8) {
    png_text t = {.compression = utf8 ? PNG_ITXT_COMPRESSION_NONE : PNG_TEXT_COMPRESSION_NONE};
    /* the library's fields are not const, and it copies */
    char k[32];
    strcpy(k, key);
    static char none[] = "";
    t.key = k;
    t.text = (char *)(uintptr_t)text;
    if (utf8) {
        t.lang = none;
        t.lang_key = none;
    }
    png_set_text(png, info, &t, 1);
}

struct picture {
    const uint8_t *rgb;
    uint32_t width, height;
    const char *parameters;
    char *plain; /* owns; parameters as Latin-1, or NULL */
};

/* The part that libpng may jump out of; not inlined, so that the caller's variables are none of its business.
 */
static __attribute__((noinline)) bool write_png(png_structp png, png_infop info, const struct picture *p,
                                                struct sink *s) {
    if (setjmp(png_jmpbuf(png))) return false;
    png_set_write_fn(png, s, on_write, on_flush);
    png_set_IHDR(png, info, p->width, p->height, 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_BASE, PNG_FILTER_TYPE_BASE);
    png_set_compression_level(png, LEVEL);
    png_set_filter(png, PNG_FILTER_TYPE_BASE, PNG_FILTER_SUB);
    if (p->parameters) put_text(png, info, "parameters", p->plain ? p->plain : p->parameters, !p->plain);
    put_text(png, info, "XML:com.adobe.xmp", xmp, true);
    png_write_info(png, info);
    for (uint32_t y = 0; y < p->height; y++) png_write_row(png, p->rgb + (size_t)y * p->width * 3);
    png_write_end(png, NULL);
    return true;
}

int kiln_png_encode(const uint8_t *rgb, uint32_t width, uint32_t height, const char *parameters,
                    struct kn_buf *out, struct kn_err *err) {
    struct sink s = {.out = out};
    struct picture p = {rgb, width, height, parameters, parameters ? latin1(parameters) : NULL};
    size_t before = out->len;
    png_infop info = NULL;
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &s, on_error, on_warning);
    if (png) info = png_create_info_struct(png);
    int rc = info ? 0 : kn_err_set(err, KN_ENOMEM, "png: out of memory");
    if (!rc && !write_png(png, info, &p, &s)) {
        out->len = before;
        rc = kn_err_set(err, s.rc, "png: %s", s.text);
    }
    png_destroy_write_struct(&png, &info);
    free(p.plain);
    return rc;
}
