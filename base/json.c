/* See json.h. */
#include "base/json.h"

#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/utf8.h"

#define ESCAPE 6 /* bytes of \uXXXX */

/* The well-formed character at p: its bytes and its code. */
static size_t character(const unsigned char *p, uint32_t *code) {
    size_t n = *p < 0x80 ? 1 : *p < 0xe0 ? 2 : *p < 0xf0 ? 3 : 4;
    *code = n == 1 ? *p : *p & (0xffu >> (n + 1));
    for (size_t i = 1; i < n; i++) *code = *code << 6 | (p[i] & 0x3f);
    return n;
}

static size_t escaped_len(uint32_t code) {
    return code < 0x80 ? 1 : code < 0x10000 ? ESCAPE : 2 * ESCAPE;
}

static size_t escape(uint32_t code, char *out) {
    if (code < 0x80) {
        *out = (char)code;
        return 1;
    }
    char text[2 * ESCAPE + 1];
    int n = code < 0x10000 ? snprintf(text, sizeof text, "\\u%04x", code)
                           : snprintf(text, sizeof text, "\\u%04x\\u%04x", 0xd800 + ((code - 0x10000) >> 10),
                                      0xdc00 + ((code - 0x10000) & 0x3ff));
    for (int i = 0; i < n; i++) out[i] = text[i];
    return (size_t)n;
}

/* The same text in ASCII, malloced; NULL: no memory. It is well-formed. */
static char *to_ascii(const char *text, size_t len, size_t *out_len) {
    const unsigned char *p = (const unsigned char *)text;
    uint32_t code;
    size_t need = 0, n = 0;
    for (size_t i = 0; i < len; need += escaped_len(code)) i += character(p + i, &code);
    char *out = need <= INT_MAX ? malloc(need + 1) : NULL;
    if (!out) return NULL;
    for (size_t i = 0; i < len; n += escape(code, out + n)) i += character(p + i, &code);
    out[n] = '\0';
    *out_len = n;
    return out;
}

/* Where `at` bytes of the ASCII text end in the text that it was made from. */
static size_t in_original(const char *text, size_t len, size_t at) {
    const unsigned char *p = (const unsigned char *)text;
    size_t i = 0;
    uint32_t code;
    while (i < len) {
        size_t n = character(p + i, &code);
        if (escaped_len(code) > at) break;
        at -= escaped_len(code);
        i += n;
    }
    return i;
}

static json_object *parse_ascii(const char *text, size_t len, int depth, size_t *used,
                                enum json_tokener_error *why) {
    json_tokener *tok = json_tokener_new_ex(depth);
    *why = json_tokener_error_size;
    if (!tok) return NULL;
    json_tokener_set_flags(tok, JSON_TOKENER_STRICT | JSON_TOKENER_ALLOW_TRAILING_CHARS);
    json_object *v = json_tokener_parse_ex(tok, text, (int)len);
    *why = json_tokener_get_error(tok);
    *used = json_tokener_get_parse_end(tok);
    json_tokener_free(tok);
    if (*why == json_tokener_success) return v;
    json_object_put(v);
    return NULL;
}

json_object *kn_json_parse(const char *text, size_t len, int depth, size_t *used,
                           enum json_tokener_error *why) {
    size_t none, ascii = 0;
    enum json_tokener_error unheard;
    if (!used) used = &none;
    if (!why) why = &unheard;
    *used = 0;
    *why = json_tokener_error_size;
    if (len > INT_MAX) return NULL;
    while (ascii < len && !((unsigned char)text[ascii] & 0x80)) ascii++;
    if (ascii == len) return parse_ascii(text, len, depth, used, why);
    size_t good = kn_utf8_span(text, len), n = 0;
    if (good < len) {
        *used = good;
        *why = json_tokener_error_parse_utf8_string;
        return NULL;
    }
    char *copy = to_ascii(text, len, &n);
    *why = json_tokener_error_size;
    if (!copy) return NULL;
    json_object *v = parse_ascii(copy, n, depth, used, why);
    *used = in_original(text, len, *used);
    free(copy);
    return v;
}
