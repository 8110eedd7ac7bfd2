/* See text.h; cli.h's words and signals are here too. */
#include "cli/text.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"

volatile sig_atomic_t cli_interrupted;

static void on_signal(int sig) {
    if (cli_interrupted > 0 && sig == SIGINT) _exit(CLI_INTERRUPTED); /* the second Ctrl-C: at once */
    cli_interrupted++;
}

void cli_catch_signals(void) {
    struct sigaction sa = {.sa_handler = on_signal};
    sigemptyset(&sa.sa_mask);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    sigaction(SIGHUP, &sa, NULL);
}

void cli_say(const char *fmt, ...) {
    va_list ap;
    fflush(stdout);
    fputs("kiln: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

int cli_exit_for(int code) {
    switch (code) {
    case KN_OK:
        return CLI_DONE;
    case KN_ECANCELED:
        return CLI_INTERRUPTED;
    case KN_ENOENT:
    case KN_EGONE:
    case KN_ETIMEOUT:
        return CLI_NO_FARM;
    case KN_EINVAL:
    case KN_ELIMIT:
    case KN_EPARSE:
    case KN_EMODEL:
    case KN_ESTATE:
    case KN_EEXIST:
    case KN_ECONFIG:
    case KN_EUNSUPPORTED:
        return CLI_BAD_INPUT;
    default:
        return CLI_FAILED;
    }
}

int cli_fail(const struct kn_err *err) {
    if (err->code != KN_ECANCELED) cli_say("%s", err->text[0] ? err->text : kn_err_words(err->code));
    return cli_exit_for(err->code);
}

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

void text_fit(const char *text, int width, int pad, char *out, size_t out_max) {
    size_t n = 0, cut = 0; /* cut: bytes that leave a column for the "…" */
    int columns = 0;
    const unsigned char *p = (const unsigned char *)text;
    while (*p && n + 8 < out_max) {
        size_t len = 1;
        while ((p[len] & 0xc0) == 0x80) len++;
        if (columns == width) {
            memcpy(out + cut, "…", sizeof "…");
            return;
        }
        if (n + len + 4 >= out_max) break;
        if (*p < 0x20 || *p == 0x7f)
            out[n++] = ' ';
        else {
            memcpy(out + n, p, len);
            n += len;
        }
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
