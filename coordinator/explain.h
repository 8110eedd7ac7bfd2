/* The view that clients have of a batch, and the answer to kiln explain: why a batch or a task stands as it does, and
 * what became of each attempt. */
#ifndef KILN_COORDINATOR_EXPLAIN_H
#define KILN_COORDINATOR_EXPLAIN_H

#include "coordinator/history.h"
#include "coordinator/server.h"

#define LOADINGS_MAX 64

/* Models that workers read into memory now, and for which batch: looked up once for a whole list. */
struct loadings {
    struct loading {
        kn_id batch;
        const struct known_worker *worker;
    } v[LOADINGS_MAX];
    size_t count;
};
void loadings_of(struct server *s, struct loadings *out);

struct status {
    struct kn_batch_status s; /* its wait_text is `text`, its other strings live in the batch */
    char text[KN_WAIT_TEXT_MAX];
};
void status_of(struct server *s, const struct kept_batch *b, const struct farm_batch_view *v,
               const struct loadings *loadings, bool with_request, struct status *out);

struct explanation {
    struct kn_explain_reply reply; /* points into the rest */
    struct status status;
    struct loadings loadings;
    char text[KN_WAIT_TEXT_MAX];
    struct history *histories; /* owns; those whose attempts are listed */
    size_t history_count;
};
/* explain_fini() in any case. KN_ENOENT: no such batch or task. KN_ENOMEM. */
KN_MUST_USE int explain(struct server *s, const struct kn_explain_query *q, struct explanation *out,
                        struct kn_err *err);
void explain_fini(struct explanation *x);

#endif
