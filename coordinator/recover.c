/* Reading the store back after a start: batches, and what became of their tasks, into the core. See
 * recover.h. */
#include "coordinator/recover.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/aside.h"
#include "coordinator/carry_out.h"
#include "coordinator/keys.h"
#include "coordinator/trash.h"
#include "coordinator/workers.h"

struct recovery {
    struct server *s;
    struct kept_batch *b; /* the one being read; NULL: nothing of it could be read yet */
    bool sealed;
    size_t batches, staged, aside, tasks, done;
};

static int on_batch(void *ctx, const struct store_batch *sb, struct kn_err *err) {
    struct recovery *r = ctx;
    struct kn_msg *msg;
    int rc = kn_msg_decode(sb->begin, sb->begin_len, &msg, err);
    if (rc != 0) return rc;
    const struct kn_submit_begin *g = &msg->u.submit_begin;
    if (msg->type != KN_MSG_SUBMIT_BEGIN || memcmp(g->batch, sb->id, sizeof g->batch) != 0 ||
        g->tasks != sb->tasks || g->chunks != sb->chunks)
        rc = kn_err_set(err, KN_ECORRUPT, "its request is of another batch");
    if (rc == 0 && !sb->sealed) rc = batches_may_begin(&r->s->batches, 0, err);
    if (rc == 0) rc = batches_add(&r->s->batches, msg, &r->b, err);
    if (rc != 0) {
        kn_msg_destroy(msg);
        return rc;
    }
    r->sealed = sb->sealed;
    r->b->state = sb->state;
    r->b->priority = sb->priority;
    r->b->created_wall_ms = sb->created_wall_ms;
    r->b->finished_wall_ms = sb->finished_wall_ms;
    return 0;
}

static int on_chunk(void *ctx, uint32_t chunk, const void *data, size_t len, struct kn_err *err) {
    struct recovery *r = ctx;
    int rc = r->sealed ? 0 : batches_may_stage(&r->s->batches, r->b, chunk, len, err);
    return rc ? rc : batches_add_chunk(&r->s->batches, r->b, chunk, data, len, err);
}

static int on_name(void *ctx, uint32_t number, const char *text, struct kn_err *err) {
    struct recovery *r = ctx;
    int rc = batch_set_name(r->b, number, text);
    return rc ? kn_err_set(err, rc, "name %u: %s", number, kn_err_words(rc)) : 0;
}

static int on_record(void *ctx, uint32_t task, const struct store_record *rec, struct kn_err *err) {
    struct recovery *r = ctx;
    int rc = batch_set_record(r->b, task, rec);
    return rc ? kn_err_set(err, rc, "record %u: %s", task, kn_err_words(rc)) : 0;
}

static int on_failure(void *ctx, const struct store_failure *f, struct kn_err *err) {
    struct recovery *r = ctx;
    struct store_record rec;
    if (batch_record(r->b, f->task, &rec)) return 0; /* it was done after all */
    int rc = batch_set_failure(r->b, f);
    return rc ? kn_err_set(err, rc, "failure of %u: %s", f->task, kn_err_words(rc)) : 0;
}

static int on_charge(void *ctx, uint32_t task, uint32_t charges, const char *history, struct kn_err *err) {
    struct recovery *r = ctx;
    struct kept_batch *b = r->b;
    if (task >= b->tasks) return kn_err_set(err, KN_ECORRUPT, "charge of task %u", task);
    if (history[0] && batches_set_history(&r->s->batches, b, task, history) == KN_ENOMEM)
        return kn_err_set(err, KN_ENOMEM, "attempts: out of memory");
    if (charges == 0) return 0;
    if (b->charge_count == b->charge_cap) {
        uint32_t cap = b->charge_cap ? b->charge_cap * 2 : 16;
        struct farm_charge *v = realloc(b->charges, cap * sizeof *v);
        if (!v) return kn_err_set(err, KN_ENOMEM, "charges: out of memory");
        b->charges = v;
        b->charge_cap = cap;
    }
    b->charges[b->charge_count++] = (struct farm_charge){.task = task, .charges = charges};
    return 0;
}

struct ended {
    uint32_t order, task;
};

static int by_order(const void *a, const void *b) {
    const struct ended *x = a, *y = b;
    if (x->order != y->order) return x->order < y->order ? -1 : 1;
    return x->task < y->task ? -1 : x->task > y->task;
}

/* The tasks that have ended, in the order in which they did; those that a person cancelled come last. The
 * caller frees *out. */
static int list_ended(struct server *s, struct kept_batch *b, struct farm_done_task **out, uint32_t *count,
                      struct kn_err *err) {
    struct ended *order = calloc(b->tasks, sizeof *order);
    struct farm_done_task *v = calloc(b->tasks, sizeof *v);
    uint32_t n = 0;
    int rc = order && v ? 0 : kn_err_set(err, KN_ENOMEM, "reading back: out of memory");
    for (uint32_t i = 0; rc == 0 && i < b->tasks; i++) {
        struct store_record rec;
        const struct batch_failure *f = batch_failure(b, i);
        uint32_t at = batch_record(b, i, &rec) ? rec.order : f ? f->order : 0;
        if (!at && b->state == KN_BATCH_CANCELLED) at = UINT32_MAX;
        if (at) order[n++] = (struct ended){at, i};
    }
    if (rc == 0) qsort(order, n, sizeof *order, by_order);
    for (uint32_t i = 0; rc == 0 && i < n; i++) {
        struct store_record rec;
        v[i].task = order[i].task;
        if (batch_record(b, order[i].task, &rec)) {
            v[i].state = TASK_DONE;
            memcpy(v[i].pixels, rec.pixels, sizeof v[i].pixels);
            /* Of a class that the core has no number for it only notices no duplicate that differs. */
            if (farm_backend(s->farm, batch_name_text(b, rec.backend), &v[i].backend) != 0)
                v[i].backend = UINT32_MAX;
        } else {
            v[i].state = batch_failure(b, order[i].task) ? TASK_FAILED : TASK_CANCELLED;
        }
    }
    free(order);
    if (rc != 0) {
        free(v);
        return rc;
    }
    *out = v;
    *count = n;
    return 0;
}

static int on_batch_end(void *ctx, struct kn_err *err) {
    struct recovery *r = ctx;
    struct server *s = r->s;
    struct kept_batch *b = r->b;
    struct farm_done_task *ended = NULL;
    struct farm_event ev = {.type = EV_BATCH_OPEN};
    struct ev_batch_open *o = &ev.u.batch_open;
    if (!r->sealed) {
        r->staged++;
        r->b = NULL;
        return 0;
    }
    uint32_t missing = batch_chunks_missing(b);
    if (missing) return kn_err_set(err, KN_ECORRUPT, "%u of %u chunks are missing", missing, b->chunk_count);
    int rc = list_ended(s, b, &ended, &o->ended_count, err);
    if (rc != 0) return rc;
    memcpy(o->id, b->id, sizeof o->id);
    o->tasks = b->tasks;
    o->priority = b->priority;
    o->pin_backend = b->begin->pin_backend;
    o->groups = b->groups;
    o->group_count = b->group_count;
    o->task_group = b->task_group;
    o->shard_tasks_max = batch_shard_tasks(b);
    o->paused = b->state == KN_BATCH_PAUSED;
    o->cancelled = b->state == KN_BATCH_CANCELLED;
    o->done = b->state == KN_BATCH_DONE;
    o->ended = ended;
    o->charges = b->charges;
    o->charge_count = b->charge_count;
    rc = server_step(s, &ev);
    if (rc != 0) {
        free(ended);
        return kn_err_set(err, rc, "the core does not take it: %s", kn_err_words(rc));
    }
    batches_sealed(&s->batches, b);
    r->b = NULL;
    r->batches++;
    r->tasks += b->tasks;
    r->done += o->ended_count;
    free(ended);
    free(b->charges);
    b->charges = NULL;
    b->charge_count = b->charge_cap = 0;
    return 0;
}

static int on_aside(void *ctx, const kn_id id, bool sealed, const struct kn_err *why, struct kn_err *err) {
    struct recovery *r = ctx;
    int rc = aside_add(r->s, id, sealed, r->b, why->text);
    if (r->b) batches_drop(&r->s->batches, r->b);
    r->b = NULL;
    r->aside++;
    return rc ? kn_err_set(err, rc, "setting a batch aside: %s", kn_err_words(rc)) : 0;
}

static int on_model(void *ctx, uint64_t wall_ms, const void *data, size_t len, struct kn_err *err) {
    struct recovery *r = ctx;
    struct kn_msg *m;
    (void)err;
    if (kn_msg_decode(data, len, &m, NULL) != 0) return 0; /* of a later program: it is announced again */
    if (m->type == KN_MSG_MODEL_LIST && m->u.model_list.count == 1)
        workers_remember_model(r->s, &m->u.model_list.v[0], wall_ms);
    kn_msg_destroy(m);
    return 0;
}

static int on_entry(void *ctx, enum store_list list, const char *field, const char *value,
                    struct kn_err *err) {
    struct recovery *r = ctx;
    int rc = keys_read(r->s, list, field, value);
    return rc ? kn_err_set(err, rc, "the list of keys: %s", kn_err_words(rc)) : 0;
}

static int on_tomb(void *ctx, const kn_id id, bool now, const uint8_t (*records)[STORE_RECORD_BYTES],
                   size_t count, struct kn_err *err) {
    struct recovery *r = ctx;
    int rc = trash_read_tomb(r->s, id, now, records, count);
    return rc ? kn_err_set(err, rc, "a removed batch: %s", kn_err_words(rc)) : 0;
}

int server_recover(struct server *s, struct kn_err *err) {
    struct recovery r = {.s = s};
    struct store_reader rd = {.ctx = &r,
                              .batch = on_batch,
                              .chunk = on_chunk,
                              .name = on_name,
                              .record = on_record,
                              .failure = on_failure,
                              .charge = on_charge,
                              .batch_end = on_batch_end,
                              .tomb = on_tomb,
                              .aside = on_aside,
                              .entry = on_entry,
                              .model = on_model};
    uint64_t t = kn_clock_ms();
    int rc = store_load(s->store, &rd, err);
    if (rc != 0) return kn_err_prefix(err, "reading the farm back");
    kn_info("recovered batches=%zu staged=%zu aside=%zu tasks=%zu ended=%zu ms=%llu", r.batches, r.staged,
            r.aside, r.tasks, r.done, (unsigned long long)(kn_clock_ms() - t));
    return 0;
}
