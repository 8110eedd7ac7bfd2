/* The names of workers, and who has one when two want it: see struct ev_worker_hello. Private to
 * coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_NAME_H
#define KILN_COORDINATOR_CORE_NAME_H

#include "coordinator/core/state.h"

/* The name under which a hello is to be taken. 0: *out (borrowed from h or a worker, or written to room).
 * KN_EAGAIN: the workers that may have it were asked, now or before. KN_EINVAL: no name; KN_ELIMIT: too many
 * newcomers wait; KN_ENOMEM. */
int name_of_hello(struct farm *f, uint64_t conn, const struct ev_worker_hello *h, char room[KN_NAME_MAX + 1],
                  const char **out, struct farm_effects *fx);
/* The hello over this connection was taken, or the connection is gone: a newcomer there waits no more. */
void name_forget(struct farm *f, uint64_t conn);
/* Keeps in the worker what its hello says of its name. */
void name_keep(struct worker *w, const struct ev_worker_hello *h);

/* A heartbeat came, with the number of a question or 0. */
void name_answer(struct worker *w, uint64_t question);
/* The next worker that a newcomer asks for and that has not answered; NULL: there is none. */
struct worker *name_silent(const struct farm *f, const struct rival *r);
/* Tells those newcomers whose question is answered. True for one whose time is over, with some that did not
 * answer: the caller gives those up, and asks again. */
bool name_settle(struct farm *f, struct rival *r, struct farm_effects *fx);

#endif
