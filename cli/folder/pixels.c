/* See pixels.h. */
#include "cli/folder/pixels.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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
