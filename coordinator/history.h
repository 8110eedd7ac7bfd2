/* The story of a task's attempts that brought no picture, as a text: the store keeps it behind the count of
 * charges, and kiln explain shows it.
 *
 *     TOTAL then for each of the newest KN_ATTEMPTS_PER_TASK_MAX, oldest first:
 *     " TIME CODE CHARGED WORKER-BYTES CLASS-BYTES REASON-BYTES WORKER CLASS REASON"
 *
 * TOTAL counts them all; TIME is Unix time in ms; CHARGED is 0 or 1. Pure functions. */
#ifndef KILN_COORDINATOR_HISTORY_H
#define KILN_COORDINATOR_HISTORY_H

#include "base/buf.h"
#include "base/err.h"
#include "proto/codec.h"

struct history {
    uint32_t total;
    size_t count;
    struct kn_attempt v[KN_ATTEMPTS_PER_TASK_MAX]; /* strings live in `text` */
    char *text;                                    /* owns */
};

/* Reads a story; "" is an empty one. KN_ECORRUPT: it is none. history_fini() in any case. */
KN_MUST_USE int history_read(const char *text, struct history *out);
void history_fini(struct history *h);
/* Adds an attempt; the oldest gives way. Its strings are borrowed until history_write(). */
void history_add(struct history *h, const struct kn_attempt *a);
/* The charges that this worker made are taken back. */
void history_refund(struct history *h, const char *worker);
/* Appends the text. KN_ENOMEM, KN_ELIMIT. */
KN_MUST_USE int history_write(const struct history *h, struct kn_buf *out);

#endif
