/* Reports of workers about their shards: begun, handed back, done, a task failed. A report about a shard that
 * has ended here meanwhile is dropped with an FX_NOTE. Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_REPORT_H
#define KILN_COORDINATOR_CORE_REPORT_H

#include "coordinator/core/state.h"

/* EV_SHARD_STARTED. */
int report_started(struct farm *f, struct worker *w, const struct ev_shard *e, struct farm_effects *fx);
/* EV_SHARD_RETURNED: uncharged, except that out of memory for a single image is a failure. A worker that
 * hands back of itself is left alone for a while, longer each time. */
int report_returned(struct farm *f, struct worker *w, const struct ev_shard *e, struct farm_effects *fx);
/* EV_SHARD_DONE. */
int report_done(struct farm *f, struct worker *w, const struct ev_shard *e, struct farm_effects *fx);
/* EV_TASK_FAILED: charged, unless it was stopped or shared memory with others. */
int report_failed(struct farm *f, struct worker *w, const struct ev_task_failed *e, struct farm_effects *fx);
/* EV_RESULT_BAD: uncharged; the task is rendered again, and the worker is held when nothing else comes from it. */
int report_bad(struct farm *f, const struct ev_result_bad *e, struct farm_effects *fx);

#endif
