/* Batches that are in the store and cannot be read back: each is set aside with its reason, and the rest of the
 * farm starts without it. Nothing of it is changed in the store until a person removes it (kiln rm); the next
 * start tries it again. A submission that was never sealed was not accepted, and is
 * cleared away by itself. The loop's thread. */
#ifndef KILN_COORDINATOR_ASIDE_H
#define KILN_COORDINATOR_ASIDE_H

#include "coordinator/server.h"

struct aside {
    kn_id id;
    bool sealed;   /* it was accepted; else only begun */
    bool removing; /* the store was asked to forget it */
    uint64_t created_wall_ms;
    char name[KN_NAME_MAX + 1]; /* "" where not even that could be read */
    char reason[KN_REASON_MAX + 1];
    struct reply_to waiters[WAITERS_MAX]; /* for the removal */
    int waiter_count;
};

/* Sets it aside (b, what could be read of it, may be NULL and stays the caller's). KN_ENOMEM. */
KN_MUST_USE int aside_add(struct server *s, const kn_id id, bool sealed, const struct kept_batch *b,
                          const char *reason);
struct aside *aside_find(const struct server *s, const kn_id id); /* NULL: it is not set aside */
/* How many accepted ones there are. While there is one, nobody knows every object that a batch names. */
size_t aside_count(const struct server *s);
/* Its line in a list of batches: state aside, the reason in wait_text. Borrows from it. */
void aside_status(const struct aside *a, struct kn_batch_status *out);
/* Answers to: why nothing can be said of this batch, or that there is none. */
void aside_reply(struct server *s, struct reply_to *to, const kn_id id);
/* A person removes it: answered when the store has forgotten it. */
void aside_remove(struct server *s, struct aside *a, struct reply_to *to);
/* A submission that was only begun under this id begins anew: the store forgets the rest before anything that it is
 * told from now on. KN_EAGAIN, KN_ENOMEM: the store takes nothing. */
KN_MUST_USE int aside_forget(struct server *s, struct aside *a);
/* Clears away what was only begun, and asks again where the store took no removal. Part of the sweep. */
void aside_sweep(struct server *s);
void aside_fini(struct server *s);

#endif
