/* The shards that this worker holds. Pure: no threads, no sockets, no clock; the loop's thread owns it.
 *
 * A lease:   granted → WAITING → RUNNING → RENDERED → over
 * WAITING    the engine has not begun it; it can be handed back and nobody has lost anything
 * RUNNING    the engine is at it (one at a time)
 * RENDERED   the engine is through, or was stopped; some pictures are not acknowledged yet
 * over       nothing is outstanding: leases_over() takes it out and says what to report
 *
 * A lease is told apart by shard and term, since a coordinator that starts again counts shards anew. Each of
 * its tasks is pending (no outcome yet), sent (its picture waits for an acknowledgement) or over
 * (acknowledged, or its failure was reported). The worker says that a shard is done when the coordinator has
 * every one of its pictures, and not before: the pictures travel on another socket, and the end must not
 * overtake them. */
#ifndef KILN_WORKER_LEASES_H
#define KILN_WORKER_LEASES_H

#include "worker/grant.h"

enum lease_state { LEASE_WAITING = 1, LEASE_RUNNING, LEASE_RENDERED };
enum lease_task { LEASE_TASK_PENDING, LEASE_TASK_SENT, LEASE_TASK_OVER };

struct lease {
    struct job *job; /* owns a reference */
    enum lease_state state;
    uint8_t task[KN_SHARD_TASKS_MAX]; /* enum lease_task, beside job->g->tasks */
    uint32_t images, render_ms;       /* how it went */
    bool out_of_memory;
    bool abort;        /* it was taken away while it ran */
    uint64_t abort_ms; /* when (the caller's clock) */
};

struct leases {
    struct lease v[KN_SHARDS_PER_WORKER_MAX]; /* in the order they were granted */
    size_t count;
    uint32_t credit;
};

void leases_init(struct leases *l, uint32_t credit);
void leases_fini(struct leases *l);

struct lease *lease_find(struct leases *l, uint64_t shard, uint64_t term); /* NULL: none */
struct lease *lease_running(struct leases *l);                             /* NULL: none */
size_t leases_waiting(const struct leases *l);

/* Takes a reference of its own. KN_EEXIST: it is held already; KN_ELIMIT: over the credit. */
KN_MUST_USE int lease_grant(struct leases *l, struct job *j);
void lease_remove(struct leases *l, struct lease *x); /* moves those behind it */

/* The engine's events. */
void lease_started(struct lease *x);
void lease_image(struct lease *x, uint32_t place);  /* rendered; its bytes wait */
void lease_failed(struct lease *x, uint32_t place); /* and reported */
void lease_finished(struct lease *x, uint32_t render_ms, uint32_t images, bool out_of_memory);

/* A picture was acknowledged or refused: true in whichever lease waits for it. */
void leases_acknowledged(struct leases *l, const kn_id batch, uint32_t task);

/* What to report of a lease that is over; then the caller removes it. NULL: none is over. */
enum lease_end { LEASE_DONE, LEASE_RETURNED }; /* returned: some of its tasks were not executed */
struct lease *leases_over(struct leases *l, enum lease_end *how);

/* The tasks of a lease without an outcome that the coordinator knows of; out has room for KN_SHARD_TASKS_MAX.
 */
size_t lease_outstanding(const struct lease *x, uint32_t *out);

#endif
