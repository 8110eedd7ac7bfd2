/* The durable state of a farm: what was accepted and what became of it. The programs keep it in Redis
 * (redis.h; the layout of the keys stands in redis_script.c), tests also in memory.
 *
 * The coordinator's memory is the truth for decisions and the store its log: it is read once, by store_load()
 * at the start, and written from then on. Writes are asynchronous and carried out in the order of the calls;
 * a `store_done` with code 0 (or KN_EEXIST, where it says so) means that the write is on disk. A connection
 * that breaks is made again and what was not answered is sent again, so that every write is safe to repeat.
 * Each write carries the term that the store was opened with and changes nothing under another: then
 * `lost` is called, once, and every write that is still open ends with KN_ETERM.
 *
 * All calls and callbacks on the loop's thread; a callback never runs inside the call that it belongs to. */
#ifndef KILN_COORDINATOR_STORE_H
#define KILN_COORDINATOR_STORE_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>
#include "base/err.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/states.h"

/* The layout of what a store keeps. A program that lays out anything so that earlier ones would misread it raises this;
 * what they may pass over does not (proto/PROTOCOL.md, "Changing this"). */
#define STORE_FORMAT 1

/* One committed image, 80 bytes in the store. Names are numbers in the batch's own table (store_name()). */
#define STORE_RECORD_BYTES 80
struct store_record {
    uint8_t sha256[KN_SHA256_BYTES], pixels[KN_SHA256_BYTES];
    uint32_t order; /* of its end within the batch, from 1 */
    uint32_t render_ms;
    uint16_t worker, backend, engine;
    uint8_t attempt; /* 255: that many or more */
    bool flat;
};
void store_record_pack(const struct store_record *r, uint8_t out[STORE_RECORD_BYTES]);
/* False: there is no record (all zero). */
bool store_record_unpack(const uint8_t in[STORE_RECORD_BYTES], struct store_record *out);

struct store_failure {
    uint32_t task;
    int code;
    uint32_t attempt, order;
    const char *worker, *reason;
};

/* A batch. `begin` is the accepted request as the caller encoded it; the store does not look inside. */
struct store_batch {
    kn_id id;
    const void *begin;
    size_t begin_len;
    uint32_t tasks, chunks;
    enum kn_batch_state state;
    int32_t priority;
    bool sealed; /* false: not accepted yet, some chunks may be there */
    uint64_t created_wall_ms, finished_wall_ms;
};

/* Lists of the farm: fields with texts that the store does not look into, but for a token's: that begins with the uses
 * that are left, and a blank. */
enum store_list {
    STORE_KEYS,   /* public key in hex -> whose it is */
    STORE_TOKENS, /* id in hex -> what it is good for */
};

/* How a write ended. code: 0, KN_EEXIST, KN_EGONE, KN_ETERM, KN_ESTATE, or KN_ECANCELED (the store was
 * closed, and nobody knows if the write is durable); after any other failure nothing is durable. data is an
 * answer with bytes, borrowed during the call, or NULL. */
typedef void (*store_done)(void *ctx, int code, const void *data, size_t len);

/* The callbacks of store_load(). For each batch it calls batch, then chunk, name, record, failure and charge
 * any number of times, then batch_end. Sealed batches come in the order of their sealing. Where one of these
 * fails, or what is stored of the batch is not what the store writes, `aside` is called in place of the rest:
 * what was told of that batch is void, and the load goes on with the next. Only a store that does not answer, and
 * a failure of `aside` or `model`, end it. */
struct store_reader {
    void *ctx;
    int (*batch)(void *ctx, const struct store_batch *b, struct kn_err *err);
    int (*chunk)(void *ctx, uint32_t chunk, const void *data, size_t len, struct kn_err *err);
    int (*name)(void *ctx, uint32_t number, const char *text, struct kn_err *err);
    int (*record)(void *ctx, uint32_t task, const struct store_record *r, struct kn_err *err);
    int (*failure)(void *ctx, const struct store_failure *f, struct kn_err *err);
    int (*charge)(void *ctx, uint32_t task, uint32_t charges, const char *history, struct kn_err *err);
    int (*batch_end)(void *ctx, struct kn_err *err);
    /* The tombstone of a removed batch: its records, a part of them at a time, in their order and packed. May be
     * NULL. */
    int (*tomb)(void *ctx, const kn_id id, bool now, const uint8_t (*records)[STORE_RECORD_BYTES],
                size_t count, struct kn_err *err);
    int (*aside)(void *ctx, const kn_id id, bool sealed, const struct kn_err *why, struct kn_err *err);
    /* An entry of a list. May be NULL. */
    int (*entry)(void *ctx, enum store_list list, const char *field, const char *value, struct kn_err *err);
    /* A model that some worker announced; may be NULL. */
    int (*model)(void *ctx, uint64_t wall_ms, const void *data, size_t len, struct kn_err *err);
};

/* True for a failure to read that is the batch's own, and not the store's. */
static inline bool store_is_batchs_own(int code) {
    return code != KN_EIO && code != KN_EAGAIN && code != KN_ETERM;
}

struct store;

struct store_ops {
    int (*load)(struct store *s, const struct store_reader *r, struct kn_err *err);
    int (*begin)(struct store *s, const struct store_batch *b, store_done done, void *ctx);
    int (*chunk)(struct store *s, const kn_id id, uint32_t chunk, const void *data, size_t len,
                 store_done done, void *ctx);
    int (*seal)(struct store *s, const kn_id id, uint32_t chunks, store_done done, void *ctx);
    int (*name)(struct store *s, const kn_id id, uint32_t number, const char *text);
    int (*commit)(struct store *s, const kn_id id, uint32_t task, const struct store_record *r,
                  store_done done, void *ctx);
    int (*fail)(struct store *s, const kn_id id, const struct store_failure *f, store_done done, void *ctx);
    int (*void_record)(struct store *s, const kn_id id, uint32_t task, const struct store_record *r,
                       store_done done, void *ctx);
    int (*charge)(struct store *s, const kn_id id, uint32_t task, uint32_t charges, const char *history);
    int (*state)(struct store *s, const kn_id id, enum kn_batch_state state, int32_t priority,
                 uint64_t finished_wall_ms, bool retried, store_done done, void *ctx);
    int (*remove)(struct store *s, const kn_id id, bool now, store_done done, void *ctx);
    int (*bury)(struct store *s, const kn_id id, size_t records, store_done done, void *ctx);
    int (*confirm)(struct store *s, store_done done, void *ctx);
    int (*records)(struct store *s, const kn_id id, uint32_t from, const void *records, size_t count);
    int (*model)(struct store *s, const kn_digest sha256, uint64_t wall_ms, const void *data,
                 size_t len); /* NULL: none are kept */
    int (*put)(struct store *s, enum store_list list, const char *field, const char *value, store_done done,
               void *ctx);
    int (*enrol)(struct store *s, const char *key, const char *value, const char *token, store_done done,
                 void *ctx);
    size_t (*backlog)(const struct store *s);
    uint64_t (*silent_ms)(const struct store *s, const char **why); /* NULL: it always answers */
    void (*close)(struct store *s);
};

/* The head of each implementation's own struct. */
struct store {
    const struct store_ops *ops;
    uint64_t term;    /* this coordinator's */
    kn_digest secret; /* the farm's, the same for all its coordinators: what tickets are made with */
    void (*lost)(void *ctx, int code, const char *text); /* the lead is lost, or the store cannot be trusted
                                                            any more: end the process */
    /* The store has gone back: what it had answered for is not there any more, or may be so. Everything that the
     * coordinator knows is to be written again, inside this call; what waits for an answer follows behind it. Other
     * than 0: not all of it was taken, and it is asked for again. NULL: nothing can be done. ctx: lost_ctx. */
    int (*back)(void *ctx);
    void *lost_ctx;
};

/* Reads everything back. Synchronous; once, and before the loop runs. Its callbacks may write. */
static inline int store_load(struct store *s, const struct store_reader *r, struct kn_err *err) {
    return s->ops->load(s, r, err);
}
/* ---- writes. Each returns 0 (taken: `done` will be called, exactly once) or KN_EAGAIN (too much waits
 * already), KN_ENOMEM: nothing was taken. Data is copied. */

/* A batch that is about to be submitted: not accepted until it is sealed. Repeating it replaces what it said
 * as long as it is not sealed; KN_EEXIST: sealed already. */
static inline int store_begin(struct store *s, const struct store_batch *b, store_done done, void *ctx) {
    return s->ops->begin(s, b, done, ctx);
}
/* KN_EEXIST: the batch is sealed already; KN_EGONE: no such batch. */
static inline int store_chunk(struct store *s, const kn_id id, uint32_t chunk, const void *data, size_t len,
                              store_done done, void *ctx) {
    return s->ops->chunk(s, id, chunk, data, len, done, ctx);
}
/* The acceptance. KN_EEXIST: sealed already (as good); KN_ESTATE: chunks are missing; KN_EGONE. */
static inline int store_seal(struct store *s, const kn_id id, uint32_t chunks, store_done done, void *ctx) {
    return s->ops->seal(s, id, chunks, done, ctx);
}
/* Gives a name its number in the batch's table; before the records that use it. */
static inline int store_name(struct store *s, const kn_id id, uint32_t number, const char *text) {
    return s->ops->name(s, id, number, text);
}
/* The commit. KN_EEXIST: that task was committed before, and data is the packed record that stands (as good);
 * KN_EGONE: the batch is cancelled or removed. A failure that stood for the task is void. */
static inline int store_commit(struct store *s, const kn_id id, uint32_t task, const struct store_record *r,
                               store_done done, void *ctx) {
    return s->ops->commit(s, id, task, r, done, ctx);
}
/* A task has failed for good. KN_EEXIST: it was committed before, and stays so; KN_EGONE. */
static inline int store_fail(struct store *s, const kn_id id, const struct store_failure *f, store_done done,
                             void *ctx) {
    return s->ops->fail(s, id, f, done, ctx);
}
/* The object of this very record was found lost or damaged: the record is void, the task as if it had never
 * been rendered, and a batch that was done is active. KN_EEXIST: that record does not stand (any more), and
 * nothing was changed; KN_EGONE: removed. */
static inline int store_void(struct store *s, const kn_id id, uint32_t task, const struct store_record *r,
                             store_done done, void *ctx) {
    return s->ops->void_record(s, id, task, r, done, ctx);
}
/* How often a task was charged, and the story of its attempts: text that the store does not look into, "" for
 * none. No answer. */
static inline int store_charge(struct store *s, const kn_id id, uint32_t task, uint32_t charges,
                               const char *history) {
    return s->ops->charge(s, id, task, charges, history);
}
/* retried: failures and charges are void, not the story of the attempts. KN_EGONE: removed. */
static inline int store_state(struct store *s, const kn_id id, enum kn_batch_state state, int32_t priority,
                              uint64_t finished_wall_ms, bool retried, store_done done, void *ctx) {
    return s->ops->state(s, id, state, priority, finished_wall_ms, retried, done, ctx);
}
/* The batch leaves, sealed or not. Removing what is not there is fine. Its records stay as a tombstone: nothing
 * names their objects by them any more, and they tell which objects are to go, to this coordinator or to the next. */
static inline int store_remove(struct store *s, const kn_id id, store_done done, void *ctx) {
    return s->ops->remove(s, id, false, done, ctx);
}
/* The same, and the objects are to be deleted at once. */
static inline int store_remove_now(struct store *s, const kn_id id, store_done done, void *ctx) {
    return s->ops->remove(s, id, true, done, ctx);
}
/* The tombstone leaves, if it has so many records. KN_ESTATE: it has others too, and stays. */
static inline int store_bury(struct store *s, const kn_id id, size_t records, store_done done, void *ctx) {
    return s->ops->bury(s, id, records, done, ctx);
}
/* Changes nothing: 0 says that this coordinator led when the store was asked. */
static inline int store_confirm(struct store *s, store_done done, void *ctx) {
    return s->ops->confirm(s, done, ctx);
}
/* Records of so many tasks, from that one on, packed: those that the store has stay as they are, and those without a
 * record are all 0. For `back` alone. No answer. */
static inline int store_records(struct store *s, const kn_id id, uint32_t from, const void *records,
                                size_t count) {
    return s->ops->records ? s->ops->records(s, id, from, records, count) : 0;
}
/* A worker announced this model: what is told of it (which the store does not look into), and when. No answer. */
static inline int store_model(struct store *s, const kn_digest sha256, uint64_t wall_ms, const void *data,
                              size_t len) {
    return s->ops->model ? s->ops->model(s, sha256, wall_ms, data, len) : 0;
}
/* Puts an entry in a list, or takes it off (value ""), or all (field "" too). */
static inline int store_put(struct store *s, enum store_list list, const char *field, const char *value,
                            store_done done, void *ctx) {
    return s->ops->put(s, list, field, value, done, ctx);
}
/* Puts a key on its list by a use of that token. KN_EEXIST: it is there already, and no use was taken; KN_EGONE: there is
 * no such token, or it has no use left. */
static inline int store_enrol(struct store *s, const char *key, const char *value, const char *token,
                              store_done done, void *ctx) {
    return s->ops->enrol(s, key, value, token, done, ctx);
}
/* Writes that are not answered yet. */
static inline size_t store_backlog(const struct store *s) {
    return s->ops->backlog(s);
}
/* For how long what was asked has not been answered, and the last error (*why, "" for none; borrowed). 0: it
 * answers. */
static inline uint64_t store_silent_ms(const struct store *s, const char **why) {
    *why = "";
    return s->ops->silent_ms ? s->ops->silent_ms(s, why) : 0;
}
/* Gives the lead back if nothing is outstanding; open writes end with KN_ECANCELED, inside this call. Not for
 * use inside a callback of the store. NULL is fine. */
static inline void store_close(struct store *s) {
    if (s) s->ops->close(s);
}

#endif
