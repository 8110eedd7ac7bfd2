/* Features: what programs of different versions must tell each other before one relies on the other.
 *
 * A worker's hello and a coordinator's welcome list the features of their program, and a batch lists those that it
 * needs beyond KN_FEATURES_BEFORE. A feature is a name on the wire and in the store, for ever, and a bit in memory.
 * A name that a program does not know is passed over in a hello, which loses nothing; in a batch it is refused.
 *
 * The samplers and schedules are features by themselves, from their tables in spec.h. Any other is a row of
 * KN_FEATURE_TABLE; one that is a task's own (a new field of Task) also has its line in kn_task_needs(). */
#ifndef KN_BASE_FEATURES_H
#define KN_BASE_FEATURES_H

#include "base/spec.h"

#define KN_FEATURES_MAX 64       /* a bit each */
#define KN_FEATURES_TEXT_MAX 256 /* several of them in words */

#define KN_FEATURE_SAMPLER(value) (UINT64_C(1) << (value))         /* 1 to 31 */
#define KN_FEATURE_SCHEDULE(value) (UINT64_C(1) << (32 + (value))) /* 33 to 39 */

/* The others: X(id, bit from 40 to 63, name, in words). */
#define KN_FEATURE_TABLE(X)                                                                                  \
    X(PARTS, 40, "submit.parts", "chunks in several parts")                                                  \
    X(TICKET, 41, "grant.ticket", "tickets of grants")

enum {
#define KN_FEATURE_BIT(id, bit, name, words) KN_FEATURE_BIT_##id = (bit),
    KN_FEATURE_TABLE(KN_FEATURE_BIT)
#undef KN_FEATURE_BIT
};
#define KN_FEATURE_PARTS (UINT64_C(1) << KN_FEATURE_BIT_PARTS)
#define KN_FEATURE_TICKET (UINT64_C(1) << KN_FEATURE_BIT_TICKET)

/* The features of the programs that said nothing of features yet: version 0.1.0, with the samplers DDIM, PNDM, Euler,
 * Euler a and DPM++ 2M and the schedules normal and karras. Never changed: a peer that lists none is one of them. */
#define KN_FEATURES_BEFORE                                                                                   \
    (KN_FEATURE_SAMPLER(1) | KN_FEATURE_SAMPLER(2) | KN_FEATURE_SAMPLER(3) | KN_FEATURE_SAMPLER(4) |         \
     KN_FEATURE_SAMPLER(5) | KN_FEATURE_SCHEDULE(1) | KN_FEATURE_SCHEDULE(2))

/* Those of this program. */
uint64_t kn_features(void);
/* Those that a task needs of who renders it, and of who keeps it. It must be resolved. */
uint64_t kn_task_needs(const struct kn_task *t);

/* The names of the features, static; returns their number. */
size_t kn_features_list(uint64_t features, const char *names[KN_FEATURES_MAX]);
/* The features with these names; *unknown (may be NULL) is the first name that this program does not know, or NULL. */
uint64_t kn_features_read(const char *const *names, size_t count, const char **unknown);
/* The same of a peer's list: one that lists none has those of KN_FEATURES_BEFORE. */
uint64_t kn_features_of_peer(const char *const *names, size_t count);
/* "sampler DPM++ 2M, schedule karras" for people, cut where there is no more room; returns out. */
const char *kn_features_words(uint64_t features, char out[KN_FEATURES_TEXT_MAX]);

#endif
