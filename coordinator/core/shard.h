/* Shards: granted to a worker, they lose tasks as results come, and end by the worker, by us or by silence.
 * Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_SHARD_H
#define KILN_COORDINATOR_CORE_SHARD_H

#include "coordinator/core/state.h"

/* The fate of the tasks that a shard still holds when it ends. */
enum shard_fate {
    FATE_REQUEUE, /* queued again: nobody is to blame */
    FATE_LOST,    /* queued again, but it is remembered that they were lost */
    FATE_GUILTY,  /* they were executing: charged or halved (blame.c) */
    FATE_CANCEL,  /* their batch was cancelled */
};

/* Makes room for whatever shard_end and shard_withdraw may need for this shard. KN_ENOMEM, KN_ELIMIT. */
KN_MUST_USE int shard_reserve(struct farm *f, struct farm_effects *fx, const struct shard *s);

/* Hands these tasks to a worker that has credit left. They are in no queue, or held by one other shard. NULL:
 * out of memory, nothing was done. */
struct shard *shard_grant(struct farm *f, struct worker *w, struct batch *b, const uint32_t *tasks,
                          uint32_t count, struct farm_effects *fx);
/* The same where the worker holds them already, under the id and term of an earlier coordinator or life. */
struct shard *shard_adopt(struct farm *f, struct worker *w, struct batch *b, const struct farm_held *held,
                          const uint32_t *tasks, uint32_t count);

/* The shard of a worker, or NULL. */
struct shard *shard_find(const struct worker *w, uint64_t id, uint64_t term);
/* True when the shard still holds this task. */
bool shard_holds(const struct shard *s, uint32_t t);
/* The worker has begun to execute it. */
void shard_started(struct farm *f, struct shard *s);
/* This task of it ended the worker's engine, and those behind it are rendered by a fresh one. */
void shard_renewed(struct farm *f, struct shard *s, uint32_t t);
/* Takes one task out of a shard; another copy stays where it is. */
void shard_drop(struct farm *f, struct shard *s, uint32_t t);
/* A result of a granted task came, from `by` or (NULL) from nobody that is known: no shard holds the task any
 * more. A shard that is left without tasks by another's work is taken back. At most COPIES_MAX effects. True when
 * `by` began it after its last fault. */
bool shard_result(struct farm *f, struct batch *b, uint32_t t, const struct worker *by,
                  struct farm_effects *fx);
/* The worker says that it is through with it. Images may still come; if they do not, shard_sweep() ends it. */
void shard_done(struct farm *f, struct shard *s);
/* The worker does not have it any more. `code` and `reason` are for FATE_GUILTY. */
void shard_end(struct farm *f, struct shard *s, enum shard_fate fate, int code, const char *reason,
               struct farm_effects *fx);
/* We take it back: with `abort` even while it is executed. It uses credit until the worker has answered. */
void shard_withdraw(struct farm *f, struct shard *s, bool abort, enum shard_fate fate,
                    struct farm_effects *fx);
void shard_withdraw_guilty(struct farm *f, struct shard *s, int code, const char *reason,
                           struct farm_effects *fx);
/* Looks at the shards of a worker as time passes: hangs, lost messages, images that never came. */
void shard_sweep(struct farm *f, struct worker *w, struct farm_effects *fx);

#endif
