/* The growing buffer; the contract is buf.h. Invariant: len < cap once anything was appended, data[len] == 0.
 */
#include "base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void kn_buf_init(struct kn_buf *b, size_t max) {
    *b = (struct kn_buf){.max = max < SIZE_MAX ? max : SIZE_MAX - 1}; /* room for the 0 */
}

void kn_buf_fini(struct kn_buf *b) {
    free(b->data);
    *b = (struct kn_buf){.max = b->max};
}

void kn_buf_clear(struct kn_buf *b) {
    b->len = 0;
    if (b->data) b->data[0] = '\0';
}

int kn_buf_reserve(struct kn_buf *b, size_t more, void **out) {
    if (more > b->max || b->len > b->max - more) return KN_ELIMIT;
    size_t need = b->len + more + 1; /* the terminating 0 */
    if (need > b->cap) {
        size_t cap = b->cap ? b->cap : 64;
        while (cap < need) cap = cap > SIZE_MAX / 2 ? need : cap * 2;
        if (cap > b->max + 1) cap = b->max + 1;
        char *data = realloc(b->data, cap);
        if (!data) return KN_ENOMEM;
        b->data = data;
        b->cap = cap;
    }
    b->data[b->len] = '\0'; /* also when the caller reserves and then adds nothing */
    b->data[b->len + more] = '\0';
    if (out) *out = b->data + b->len;
    return KN_OK;
}

int kn_buf_append(struct kn_buf *b, const void *data, size_t len) {
    void *room;
    int rc = kn_buf_reserve(b, len, &room);
    if (rc) return rc;
    if (len) memcpy(room, data, len);
    b->len += len;
    b->data[b->len] = '\0';
    return KN_OK;
}

int kn_buf_appends(struct kn_buf *b, const char *s) {
    return kn_buf_append(b, s, strlen(s));
}

int kn_buf_appendf(struct kn_buf *b, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    int rc = KN_EINVAL;
    if (n >= 0) {
        void *room;
        rc = kn_buf_reserve(b, (size_t)n, &room);
        if (rc == KN_OK) {
            vsnprintf(room, (size_t)n + 1, fmt, again);
            b->len += (size_t)n;
        }
    }
    va_end(again);
    return rc;
}
