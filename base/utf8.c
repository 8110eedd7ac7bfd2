/* UTF-8; the contract is utf8.h. */
#include "base/utf8.h"

#include <stdint.h>

size_t kn_utf8_span(const char *text, size_t len) {
    const uint8_t *p = (const uint8_t *)text;
    size_t at = 0;
    while (at < len) {
        uint8_t c = p[at];
        if (c < 0x80) {
            at++;
            continue;
        }
        /* The second byte's range is what keeps out overlong forms, surrogates and what is past U+10FFFF. */
        size_t more;
        uint8_t low = 0x80, high = 0xbf;
        if (c >= 0xc2 && c <= 0xdf) {
            more = 1;
        } else if (c >= 0xe0 && c <= 0xef) {
            more = 2;
            if (c == 0xe0) low = 0xa0;
            if (c == 0xed) high = 0x9f;
        } else if (c >= 0xf0 && c <= 0xf4) {
            more = 3;
            if (c == 0xf0) low = 0x90;
            if (c == 0xf4) high = 0x8f;
        } else {
            return at;
        }
        if (len - at <= more) return at;
        if (p[at + 1] < low || p[at + 1] > high) return at;
        for (size_t i = 2; i <= more; i++) {
            if ((p[at + i] & 0xc0) != 0x80) return at;
        }
        at += more + 1;
    }
    return len;
}

size_t kn_utf8_cut(const char *text, size_t len, size_t max) {
    if (len <= max) return len;
    while (max > 0 && ((uint8_t)text[max] & 0xc0) == 0x80) max--;
    return max;
}
