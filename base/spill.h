/* Memory for lists and texts that may be long. Up to KN_SPILL_HEAP bytes it is ordinary memory; from there on it lies in
 * a file without a name ($TMPDIR, else /var/tmp, else /tmp), mapped, so that a million prompts take disk and not RAM.
 * Where no file can be made or the disk is full, it goes on as ordinary memory. Libc only; one owner. */
#ifndef KN_BASE_SPILL_H
#define KN_BASE_SPILL_H

#include <stdbool.h>
#include <stddef.h>
#include "base/err.h"

#define KN_SPILL_HEAP ((size_t)1 << 20)

/* A growing buffer. All zero: empty. */
struct kn_spill {
    char *data; /* owns; moves when it grows */
    size_t len, cap;
    size_t max; /* appending past it is KN_ELIMIT; 0: no bound of its own */
    int fd;     /* of the file, while it may grow */
    bool mapped, fixed;
};

/* Makes room for `more` bytes behind len, which the caller then adds to. KN_ENOMEM, KN_ELIMIT. */
KN_MUST_USE int kn_spill_reserve(struct kn_spill *s, size_t more);
KN_MUST_USE int kn_spill_append(struct kn_spill *s, const void *data, size_t len);
/* Lets go from RAM what is in the file: it comes back when it is looked at. Pointers into it stay valid. */
void kn_spill_rest(const struct kn_spill *s);
void kn_spill_fini(struct kn_spill *s);

/* Texts that stay where they are until all go at once. All zero: none. */
struct kn_texts {
    struct kn_spill *blocks; /* owns */
    size_t count;
};
/* A copy, with its terminating 0; NULL: out of memory. */
char *kn_texts_add(struct kn_texts *t, const char *text);
void kn_texts_rest(const struct kn_texts *t);
void kn_texts_fini(struct kn_texts *t);

#endif
