/* The shards that this worker holds. Pure: no threads, no sockets, no clock; the loop's thread owns it.
 *
 *     granted → WAITING → RUNNING → RENDERED → over
 *
 *     WAITING    the engine has not begun it; it can be handed back, and nobody has lost anything
 *     RUNNING    the engine renders it (one at a time)
 *     RENDERED   the engine is through, or was stopped; some pictures are not acknowledged yet
 *     over       nothing is outstanding: shards_over() finds it and says what to report
 *
 * A shard is told apart by number and term, since a coordinator that starts again counts shards anew. Each of
 * its tasks is pending (no outcome yet), sent (its picture waits for an acknowledgement) or over
 * (acknowledged, or its failure was reported). The worker says that a shard is done when the coordinator has
 * every one of its pictures, and not before: the pictures travel on another socket, and the end must not
 * overtake them. */
#ifndef KILN_WORKER_SHARDS_H
#define KILN_WORKER_SHARDS_H

#include "worker/grant.h"

enum held_state { SHARD_WAITING = 1, SHARD_RUNNING, SHARD_RENDERED };
enum shard_task { SHARD_TASK_PENDING, SHARD_TASK_SENT, SHARD_TASK_OVER };

struct held_shard {
    struct grant *grant; /* owns a reference */
    enum held_state state;
    uint8_t task[KN_SHARD_TASKS_MAX]; /* enum shard_task, beside grant->shard->tasks */
    uint32_t images, render_ms;       /* how it went */
    bool out_of_memory;
    bool abort; /* it was taken away while it ran */
};

struct shards {
    struct held_shard v[KN_SHARDS_PER_WORKER_MAX]; /* in the order they were granted */
    size_t count;
    uint32_t credit;
};

void shards_init(struct shards *l, uint32_t credit);
void shards_fini(struct shards *l);

struct held_shard *shards_find(struct shards *l, uint64_t shard, uint64_t term); /* NULL: none */
struct held_shard *shards_running(struct shards *l);                             /* NULL: none */
size_t shards_waiting(const struct shards *l);

/* Takes a reference of its own. KN_EEXIST: it is held already; KN_ELIMIT: over the credit. */
KN_MUST_USE int shards_take(struct shards *l, struct grant *grant);
void shards_remove(struct shards *l, struct held_shard *x); /* moves those behind it */

/* The engine's events. */
void shard_started(struct held_shard *x);
void shard_image(struct held_shard *x, uint32_t place);  /* rendered; its bytes wait */
void shard_failed(struct held_shard *x, uint32_t place); /* and reported */
void shard_finished(struct held_shard *x, uint32_t render_ms, uint32_t images, bool out_of_memory);

/* A picture was acknowledged or refused: that holds for each shard that waits for it. */
void shards_acknowledged(struct shards *l, const kn_id batch, uint32_t task);

/* The first shard that is over, and what to report of it in *how; the caller removes it then. NULL: none. */
enum shard_end { SHARD_DONE, SHARD_RETURNED }; /* returned: some of its tasks were not executed */
struct held_shard *shards_over(struct shards *l, enum shard_end *how);

/* The tasks of a shard without an outcome that the coordinator knows of; out has room for KN_SHARD_TASKS_MAX.
 */
size_t shard_outstanding(const struct held_shard *x, uint32_t *out);

#endif
