/* Results and failures on their way to the store. Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_COMMIT_H
#define KILN_COORDINATOR_CORE_COMMIT_H

#include "coordinator/core/state.h"

/* EV_RESULT. */
int commit_result(struct farm *f, uint64_t conn, const struct ev_result *r, struct farm_effects *fx);
/* EV_STORED of a commit or a failure. */
int commit_stored(struct farm *f, const struct ev_stored *s, struct farm_effects *fx);
/* This task, in no queue and no shard, is failed as soon as the store knows. */
void commit_fail(struct farm *f, struct batch *b, uint32_t t, int code, const char *reason,
                 const char *worker, struct farm_effects *fx);
/* A retry came while this task was about to fail: it is queued again as soon as no question about it is open.
 */
void commit_void(struct farm *f, struct batch *b, uint32_t t);
/* Asks the store again what it refused. Part of the tick. */
void commit_retry(struct farm *f, struct farm_effects *fx);

#endif
