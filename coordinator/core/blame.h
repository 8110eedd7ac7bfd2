/* Who is guilty when something fails: the task or the worker. Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_BLAME_H
#define KILN_COORDINATOR_CORE_BLAME_H

#include "coordinator/core/state.h"

/* A worker ended badly while it executed these tasks of one group, more than one; they are in no shard any
 * more. They go back in two halves, uncharged. */
void blame_shard(struct farm *f, struct batch *b, const uint32_t *tasks, uint32_t count, struct worker *w,
                 int code, const char *reason, struct farm_effects *fx);
/* This task failed on a worker: the worker said so, or executed nothing but this task when it ended. The task
 * is in no shard, or in one other. It is charged (unless the worker is held for it), and queued again to be rendered
 * alone, or failed. */
void blame_task(struct farm *f, struct batch *b, uint32_t t, struct worker *w, int code, const char *reason,
                struct farm_effects *fx);
/* Tells the shell how an attempt at a task ended, for people to read. Nothing is decided by it. */
void blame_attempt(struct farm *f, struct batch *b, uint32_t t, const struct worker *w, int code,
                   const char *reason, bool charged, struct farm_effects *fx);
/* Queues tasks of one group, in no shard, that were not rendered and are not to blame: suspects as suspects,
 * the others in front of their queue. */
void blame_requeue(struct farm *f, struct batch *b, const uint32_t *tasks, uint32_t count,
                   struct farm_effects *fx);
/* True for a failure that takes an engine or a worker with it: one that is dear to try again. */
bool blame_is_deadly(int code);
/* True when this suspect may be tried on this worker. */
bool blame_allows(struct farm *f, struct batch *b, uint32_t t, const struct worker *w);
/* A result of this task came from `by` (NULL: a worker that is not known). `after_fault`: its shard there began after
 * that worker's last fault. The worker that failed the task before is held if this was one fault too many. */
void blame_result(struct farm *f, struct batch *b, uint32_t t, struct worker *by, bool after_fault,
                  struct farm_effects *fx);
/* Fails the tasks whose verdict waited, or that nobody is left to render. Part of the tick, and of what a probe
 * brings. */
void blame_sweep(struct farm *f, struct farm_effects *fx);

#endif
