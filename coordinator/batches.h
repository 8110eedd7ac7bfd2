/* The coordinator's record of each batch, beside the core's: the accepted request, its chunks (compressed, as
 * they came), and what its tasks became. The core decides; this answers clients and fills grants.
 *
 * Memory: the stories of attempts (HISTORY_BYTES_MAX for all batches); 80 bytes a task for the record, made when the first image is committed; 2 bytes a task for its
 * group until the core has it; the compressed chunks; and a few chunks unpacked, shared by all batches. The
 * loop's thread. */
#ifndef KILN_COORDINATOR_BATCHES_H
#define KILN_COORDINATOR_BATCHES_H

#include "base/map.h"
#include "coordinator/core/farm.h"
#include "coordinator/store/store.h"
#include "proto/codec.h"
#include "proto/wire.h"

struct reply_to {         /* a client that waits for an answer */
    struct kn_sock *sock; /* NULL: nobody */
    struct kn_peer peer;
    uint64_t request;
    int code;         /* the answer once its batch's state is durable, */
    const char *text; /* …and its words: not NULL, static */
};

#define WAITERS_MAX 4

/* One more who waits; the oldest gives way when there are too many, and has asked again by now. */
void reply_to_add(struct reply_to *v, int *count, const struct reply_to *to);

struct batch_failure {
    int code;
    uint32_t attempt, order;
    char worker[KN_NAME_MAX + 1];
    char reason[];
};

struct batch_chunk {
    uint8_t *data; /* owns; NULL: not there (yet) */
    uint32_t len;
};

/* A chunk over a frame, of which some parts have come. */
struct batch_parts {
    uint32_t chunk, parts, have;
    struct kn_buf bytes;
};

enum batch_phase { BATCH_STAGED, BATCH_SEALING, BATCH_SEALED, BATCH_REMOVING };

struct kept_batch {
    kn_id id;
    enum batch_phase phase;
    struct kn_msg *msg;                  /* owns: the SubmitBegin, models pinned; see begin */
    const struct kn_submit_begin *begin; /* in msg */
    uint32_t tasks, chunk_count;
    struct batch_chunk *chunks; /* owns */
    uint64_t created_wall_ms, finished_wall_ms, touched_ms;
    size_t chunk_bytes;
    uint64_t features;         /* that its tasks may need */
    size_t task_bytes;         /* of the largest, in a grant */
    struct batch_parts *parts; /* owns; NULL: none is half there */
    bool has_owner;            /* a key submitted it: */
    struct kn_public_key owner;
    uint64_t stager; /* while it is staged: the connection that submits it; 0: nobody since a restart */

    struct farm_group *groups; /* owns; until the core has them */
    uint32_t group_count, group_cap;
    uint16_t *task_group; /* owns; the same */
    struct kn_map *group_index;

    uint8_t (*records)[STORE_RECORD_BYTES]; /* owns; NULL: nothing is committed */
    struct batch_failure **failures;        /* owns, with what it holds; NULL: none */
    struct kn_map *histories;               /* task -> its story (history.h), owned; NULL: none */
    size_t history_bytes;
    char **names; /* owns; the number of a record's names */
    uint32_t name_count, name_cap;
    struct kn_map *name_index; /* text -> number */
    uint32_t order;            /* of the task that ended last, from 1 */

    enum kn_batch_state state; /* as the store has it */

    /* while reading back */
    int32_t priority;
    struct farm_charge *charges;
    uint32_t charge_count, charge_cap;

    bool remove_now;                      /* being removed: its objects are to be deleted at once */
    struct reply_to waiters[WAITERS_MAX]; /* for the seal, or for the removal */
    int waiter_count;
    struct reply_to state_waiters[WAITERS_MAX]; /* for its state to be durable */
    int state_waiter_count;
    struct farm_batch_view *leaving; /* owns; BATCH_REMOVING: how it stood when the core let go of it */
    bool removal_open;               /* BATCH_REMOVING: the store was asked and has not answered */
};

struct batches {
    struct kn_map *by_id;
    struct batch_cache *cache; /* unpacked chunks */
    size_t staged_count, staged_bytes;
    size_t removing;      /* how many are in BATCH_REMOVING */
    size_t history_bytes; /* of all batches */
};

KN_MUST_USE int batches_init(struct batches *bs);
void batches_fini(struct batches *bs);
struct kept_batch *batches_find(const struct batches *bs, const kn_id id); /* NULL: none */

/* 0 while there is room for another submission, or for a chunk of `len` bytes of this one: the bounds on what is
 * staged by one connection and by all. KN_ELIMIT, in words. */
KN_MUST_USE int batches_may_begin(const struct batches *bs, uint64_t stager, struct kn_err *err);
KN_MUST_USE int batches_may_stage(const struct batches *bs, const struct kept_batch *b, uint32_t chunk,
                                  size_t len, struct kn_err *err);
/* Makes a batch out of an accepted SubmitBegin, staged; takes msg on success. KN_ELIMIT, KN_ENOMEM. */
KN_MUST_USE int batches_add(struct batches *bs, struct kn_msg *msg, struct kept_batch **out,
                            struct kn_err *err);
/* Marks it sealed, and frees what only its submission needed. */
void batches_sealed(struct batches *bs, struct kept_batch *b);
void batches_drop(struct batches *bs, struct kept_batch *b); /* and destroys it */

/* Validates and keeps a chunk (copied), and sorts its tasks into groups. KN_EEXIST: it is there, the same;
 * KN_ESTATE: it is there and was another; KN_EINVAL, KN_ELIMIT, KN_EPROTO: what is wrong with it. */
KN_MUST_USE int batches_add_chunk(struct batches *bs, struct kept_batch *b, uint32_t chunk, const void *data,
                                  size_t len, struct kn_err *err);
/* Keeps the next part of a chunk over a frame, and with the last one the chunk, as above. PART_HELD: it waits for the
 * others, in memory alone; KN_ESTATE: those before it are not there: the first must come again. */
enum { PART_HELD = 1 };
KN_MUST_USE int batches_add_part(struct batches *bs, struct kept_batch *b, const struct kn_submit_chunk *c,
                                 struct kn_err *err);
/* So many of its tasks fit in a grant, whichever they are. */
uint32_t batch_shard_tasks(const struct kept_batch *b);
/* How many tasks a chunk has: all but the last are full. */
uint32_t batch_chunk_tasks(const struct kept_batch *b, uint32_t chunk);
uint32_t batch_chunks_missing(const struct kept_batch *b);
void batch_free_groups(struct kept_batch *b);

/* A task as it was submitted, out of the cache of unpacked chunks: borrowed until the next call. NULL: cannot
 * be unpacked (memory). */
const struct kn_task *batches_task(struct batches *bs, struct kept_batch *b, uint32_t task,
                                   struct kn_err *err);

/* The number of a name in the batch's table; *is_new: it was given now, and the store must learn it. A full
 * table gives 0, which is "". KN_ENOMEM. */
KN_MUST_USE int batch_name(struct kept_batch *b, const char *text, uint16_t *out, bool *is_new);
const char *batch_name_text(const struct kept_batch *b, uint32_t number);
KN_MUST_USE int batch_set_name(struct kept_batch *b, uint32_t number, const char *text); /* reading back */

KN_MUST_USE int batch_set_record(struct kept_batch *b, uint32_t task, const struct store_record *r);
void batch_clear_record(struct kept_batch *b, uint32_t task);
bool batch_record(const struct kept_batch *b, uint32_t task, struct store_record *out); /* false: none */
KN_MUST_USE int batch_set_failure(struct kept_batch *b, const struct store_failure *f);
const struct batch_failure *batch_failure(const struct kept_batch *b, uint32_t task); /* NULL: none */
void batch_clear_failures(struct kept_batch *b);
/* The story of a task's attempts (history.h); "" for none. */
const char *batch_history(const struct kept_batch *b, uint32_t task);
/* Keeps another story of it (copied). KN_ELIMIT: the farm keeps enough of them, and the count of charges must
 * do for this task. KN_ENOMEM. */
KN_MUST_USE int batches_set_history(struct batches *bs, struct kept_batch *b, uint32_t task,
                                    const char *text);
/* The next task that has a story, in no order; pos as in kn_map_next(). NULL: no more. */
const char *batch_next_history(const struct kept_batch *b, size_t *pos, uint32_t *task);

/* The next batch in that phase; pos as in kn_map_next(). NULL: no more. */
struct kept_batch *batches_next(const struct batches *bs, size_t *pos, enum batch_phase phase);
/* The core has let go of it (`last`: how it stood), and the store is to forget it. */
void batch_leaves(struct batches *bs, struct kept_batch *b, const struct farm_batch_view *last);

#endif
