/* UTF-8; the contract is utf8.h. */
#include "base/utf8.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

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

/* True for what would change how a terminal shows the text around it. */
static bool commands_a_terminal(uint32_t c) {
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x061c || c == 0x200e || c == 0x200f ||
           (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

size_t kn_utf8_visible(const char *text, bool lines, char *out, size_t out_max) {
    size_t n = 0, len = strlen(text), whole = kn_utf8_span(text, len);
    for (size_t at = 0; at < len;) {
        uint8_t lead = (uint8_t)text[at];
        size_t bytes = 1;
        char shown[12];
        if (at < whole && lead >= 0x80) bytes = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
        uint32_t c = lead;
        if (bytes > 1) {
            c = lead & (0x7fu >> bytes);
            for (size_t i = 1; i < bytes; i++) c = c << 6 | ((uint8_t)text[at + i] & 0x3f);
        }
        bool broken = at >= whole; /* this byte begins no character */
        if (broken || (commands_a_terminal(c) && !(lines && c == '\n')))
            snprintf(shown, sizeof shown, c < 0x100 && bytes == 1 ? "\\x%02x" : "\\u%04x", (unsigned)c);
        else
            snprintf(shown, sizeof shown, "%.*s", (int)bytes, text + at);
        size_t room = strlen(shown);
        if (n + room + 1 > out_max) break;
        memcpy(out + n, shown, room);
        n += room;
        at += bytes;
        if (broken) whole = at + kn_utf8_span(text + at, len - at);
    }
    if (out_max) out[n] = '\0';
    return n;
}
