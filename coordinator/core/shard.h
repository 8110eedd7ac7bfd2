/* Shards: granted to a worker, losing tasks as results come, ended by the worker, by us or by silence.
 * Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_SHARD_H
#define KILN_COORDINATOR_CORE_SHARD_H

#include "coordinator/core/state.h"

enum shard_fate {               /* what becomes of the tasks that a shard still holds */
                  FATE_REQUEUE, /* queued again: nobody is to blame */
                  FATE_LOST,    /* …but it is remembered that they were lost */
                  FATE_GUILTY,  /* they were executing: charged or bisected (blame.c) */
                  FATE_CANCEL,  /* their batch was cancelled */
};

/* What shard_end and shard_withdraw may need for this shard. KN_ENOMEM, KN_ELIMIT. */
KN_MUST_USE int shard_reserve(struct farm *f, struct farm_effects *fx, const struct shard *s);

/* Hands these tasks (in no queue, or held by one other shard) to a worker that has credit left. NULL: out of
 * memory, nothing was done. adopted: the worker holds them already, under this id and term. */
struct shard *shard_grant(struct farm *f, struct worker *w, struct batch *b, const uint32_t *tasks,
                          uint32_t count, struct farm_effects *fx);
struct shard *shard_adopt(struct farm *f, struct worker *w, struct batch *b, const struct farm_held *held,
                          const uint32_t *tasks, uint32_t count);

struct shard *shard_find(const struct worker *w, uint64_t id, uint64_t term);
void shard_started(struct farm *f, struct shard *s);
/* The worker is through with it; images may still come. */
void shard_done(struct farm *f, struct shard *s, struct farm_effects *fx);
/* The worker has it no more. */
void shard_end(struct farm *f, struct shard *s, enum shard_fate fate, int code, const char *reason,
               struct farm_effects *fx);
/* We take it back; it uses the worker's credit until the worker has answered. */
void shard_withdraw(struct farm *f, struct shard *s, bool abort, enum shard_fate fate,
                    struct farm_effects *fx);
void shard_withdraw_guilty(struct farm *f, struct shard *s, int code, const char *reason,
                           struct farm_effects *fx);
/* A result for a leased task came, from `by` (or NULL): frees it of its shards; a shard that is left with
 * nothing to do for others' work is taken back. At most COPIES_MAX effects. */
void shard_result(struct farm *f, struct batch *b, uint32_t t, const struct worker *by,
                  struct farm_effects *fx);
/* Takes one task out of a shard; other copies stay. */
void shard_drop(struct farm *f, struct shard *s, uint32_t t);
bool shard_holds(const struct shard *s, uint32_t t);
/* Looks at the shards of a worker as time passes: hangs, lost messages, images that never came. */
void shard_sweep(struct farm *f, struct worker *w, struct farm_effects *fx);

#endif
