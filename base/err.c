/* Error codes and the text that goes with them; the contract is err.h. */
#include "base/err.h"

#undef kn_err_set /* see err.h */
#undef kn_err_prefix

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int kn_err_set(struct kn_err *err, int code, const char *fmt, ...) {
    if (!err) return code;
    /* Formatted beside the text and copied: an argument may be the old text itself. */
    char text[KN_ERR_TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n < 0) text[0] = '\0';
    err->code = code;
    memcpy(err->text, text, strlen(text) + 1);
    return code;
}

int kn_err_prefix(struct kn_err *err, const char *fmt, ...) {
    if (!err) return KN_EINTERNAL;
    char text[KN_ERR_TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n < 0) text[0] = '\0';
    if (err->code == KN_OK) {
        err->code = KN_EINTERNAL;
        err->text[0] = '\0';
    }
    size_t head = strlen(text);
    if (err->text[0] != '\0' && head + 2 < sizeof text) {
        memcpy(text + head, ": ", 2);
        head += 2;
        size_t tail = strnlen(err->text, sizeof err->text - 1);
        if (tail > sizeof text - 1 - head) tail = sizeof text - 1 - head;
        memcpy(text + head, err->text, tail);
        text[head + tail] = '\0';
    }
    memcpy(err->text, text, strlen(text) + 1);
    return err->code;
}

const char *kn_err_words(int code) {
    switch (code) {
#define KN_ERR_CASE(name, value, words)                                                                      \
    case name:                                                                                               \
        return words;
        KN_ERR_TABLE(KN_ERR_CASE)
#undef KN_ERR_CASE
    default:
        return "unknown error";
    }
}
