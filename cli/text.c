/* See text.h. */
#include "cli/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/utf8.h"

const char *text_duration(int64_t ms, char out[CLI_DURATION_MAX]) {
    if (ms < 0) return strcpy(out, "?");
    int64_t s = (ms + 500) / 1000;
    if (s > 9999LL * 86400) return strcpy(out, "years");
    int d = (int)(s / 86400), h = (int)(s / 3600 % 24), m = (int)(s / 60 % 60), sec = (int)(s % 60);
    if (d)
        snprintf(out, CLI_DURATION_MAX, "%d d %d h", d, h);
    else if (h)
        snprintf(out, CLI_DURATION_MAX, "%d h %d min", h, m);
    else if (m)
        snprintf(out, CLI_DURATION_MAX, "%d min %d s", m, sec);
    else
        snprintf(out, CLI_DURATION_MAX, "%d s", sec);
    return out;
}

void text_vprint(FILE *out, const char *fmt, va_list ap) {
    static char text[1u << 16], shown[4u << 16]; /* a control character becomes four to six */
    vsnprintf(text, sizeof text, fmt, ap);
    kn_utf8_visible(text, true, shown, sizeof shown);
    fputs(shown, out);
}

void text_print(FILE *out, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    text_vprint(out, fmt, ap);
    va_end(ap);
}

void text_fit(const char *text, int width, int pad, char *out, size_t out_max) {
    size_t n = 0, cut = 0; /* cut: bytes that leave a column for the "…" */
    int columns = 0;
    char blank[KN_PROMPT_BYTES_MAX + 1], shown[2048];
    snprintf(blank, sizeof blank, "%s", text);
    for (char *c = blank; *c; c++)
        if (*c == '\n' || *c == '\t' || *c == '\r') *c = ' ';
    kn_utf8_visible(blank, false, shown, sizeof shown);
    const unsigned char *p = (const unsigned char *)shown;
    while (*p && n + 8 < out_max) {
        size_t len = 1;
        while ((p[len] & 0xc0) == 0x80) len++;
        if (columns == width) {
            memcpy(out + cut, "…", sizeof "…");
            return;
        }
        if (n + len + 4 >= out_max) break;
        memcpy(out + n, p, len);
        n += len;
        p += len;
        columns++;
        if (columns == width - 1) cut = n;
    }
    while (pad && columns < width && n + 1 < out_max) {
        out[n++] = ' ';
        columns++;
    }
    out[n] = '\0';
}

int text_json(json_object *o, struct kn_buf *out) {
    const char *s =
        json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
    return s ? kn_buf_appends(out, s) : KN_ENOMEM;
}

json_object *text_json_float(float v) {
    char text[32];
    if (!isfinite(v)) v = 0;
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)v);
        if (strtof(text, NULL) == v) break;
    }
    return json_object_new_double_s((double)v, text);
}

json_object *text_json_rate(double v) {
    char text[48];
    if (!isfinite(v)) v = 0;
    snprintf(text, sizeof text, "%.3f", v);
    return json_object_new_double_s(v, text);
}
