/* A growing byte buffer that states its maximum. Libc only; one owner. */
#ifndef KN_BASE_BUF_H
#define KN_BASE_BUF_H

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

struct kn_buf {
    char *data; /* owns; always terminated by a 0 that `len` does not count, once anything was appended */
    size_t len;
    size_t cap;
    size_t max; /* appending past it is KN_ELIMIT and leaves the buffer as it was */
};

void kn_buf_init(struct kn_buf *b, size_t max);
void kn_buf_fini(struct kn_buf *b);
void kn_buf_clear(struct kn_buf *b); /* len = 0, keeps the memory */
KN_MUST_USE int kn_buf_append(struct kn_buf *b, const void *data, size_t len);
KN_MUST_USE int kn_buf_appends(struct kn_buf *b, const char *s);
KN_MUST_USE int kn_buf_appendf(struct kn_buf *b, const char *fmt, ...) KN_PRINTF(2, 3);
/* Makes room for `more` bytes behind len; *out points there. The caller then adds to len. */
KN_MUST_USE int kn_buf_reserve(struct kn_buf *b, size_t more, void **out);

#endif
