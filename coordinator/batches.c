/* See batches.h. */
#include "coordinator/batches.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#define CACHE_SLOTS 16
/* Submitted and not sealed: bytes and batches, of all and of one connection. */
#define STAGED_BYTES_MAX ((size_t)1 << 30)
#define STAGED_BYTES_EACH_MAX ((size_t)512 << 20)
#define STAGED_MAX 256
#define STAGED_EACH_MAX 64
#define TASK_BYTES 128 /* of a task in a grant beside its texts, at most */
#define HISTORY_BYTES_MAX ((size_t)64 << 20)

struct batch_cache {
    struct chunk_slot {
        const struct kept_batch *batch; /* NULL: empty */
        uint32_t chunk;
        uint64_t used;
        struct kn_chunk tasks;
    } slots[CACHE_SLOTS];
    uint64_t clock;
};

int batches_init(struct batches *bs) {
    *bs = (struct batches){.by_id = kn_map_create(KN_BATCHES_MAX + STAGED_MAX),
                           .cache = calloc(1, sizeof(struct batch_cache))};
    return bs->by_id && bs->cache ? 0 : KN_ENOMEM;
}

static void cache_forget(struct batch_cache *c, const struct kept_batch *b) {
    for (int i = 0; i < CACHE_SLOTS; i++) {
        if (!c->slots[i].batch || (b && c->slots[i].batch != b)) continue;
        kn_chunk_fini(&c->slots[i].tasks);
        c->slots[i].batch = NULL;
    }
}

struct kept_history {
    uint32_t task;
    char text[];
};

static void clear_histories(struct kept_batch *b) {
    size_t pos = 0;
    struct kept_history *h;
    while (b->histories && (h = kn_map_next(b->histories, &pos))) free(h);
    kn_map_destroy(b->histories);
    b->histories = NULL;
}

static void parts_forget(struct batches *bs, struct kept_batch *b) {
    if (!b->parts) return;
    bs->staged_bytes -= b->parts->bytes.len;
    kn_buf_fini(&b->parts->bytes);
    free(b->parts);
    b->parts = NULL;
}

static void batch_destroy(struct kept_batch *b) {
    if (!b) return;
    if (b->parts) kn_buf_fini(&b->parts->bytes);
    free(b->parts);
    batch_free_groups(b);
    batch_clear_failures(b);
    clear_histories(b);
    for (uint32_t i = 0; b->chunks && i < b->chunk_count; i++) free(b->chunks[i].data);
    for (uint32_t i = 0; i < b->name_count; i++) free(b->names[i]);
    free(b->chunks);
    free(b->names);
    free(b->records);
    free(b->charges);
    free(b->leaving);
    kn_map_destroy(b->name_index);
    kn_msg_destroy(b->msg);
    free(b);
}

void batches_fini(struct batches *bs) {
    size_t pos = 0;
    struct kept_batch *b;
    if (bs->cache) cache_forget(bs->cache, NULL);
    while (bs->by_id && (b = kn_map_next(bs->by_id, &pos))) batch_destroy(b);
    kn_map_destroy(bs->by_id);
    free(bs->cache);
    *bs = (struct batches){0};
}

struct kept_batch *batches_find(const struct batches *bs, const kn_id id) {
    return kn_map_get(bs->by_id, id, sizeof(kn_id));
}

struct kept_batch *batches_next(const struct batches *bs, size_t *pos, enum batch_phase phase) {
    struct kept_batch *b;
    while ((b = kn_map_next(bs->by_id, pos)) && b->phase != phase) {
    }
    return b;
}

/* The batches, and their bytes, that one connection has staged. */
static void staged_of(const struct batches *bs, uint64_t stager, size_t *count, size_t *bytes) {
    size_t pos = 0;
    struct kept_batch *b;
    *count = *bytes = 0;
    while (stager && (b = batches_next(bs, &pos, BATCH_STAGED))) {
        if (b->stager != stager) continue;
        *bytes += b->chunk_bytes;
        ++*count;
    }
}

int batches_may_begin(const struct batches *bs, uint64_t stager, struct kn_err *err) {
    size_t count = 0, bytes;
    if (bs->staged_count >= STAGED_EACH_MAX) staged_of(bs, stager, &count, &bytes);
    if (bs->staged_count >= STAGED_MAX || count >= STAGED_EACH_MAX)
        return kn_err_set(
            err, KN_ELIMIT,
            "%zu batches are being submitted at once, %zu of them by this client: the farm takes "
            "%d, %d of one client. Seal some, or ask again later",
            bs->staged_count, count, STAGED_MAX, STAGED_EACH_MAX);
    return 0;
}

int batches_may_stage(const struct batches *bs, const struct kept_batch *b, uint32_t chunk, size_t len,
                      struct kn_err *err) {
    size_t count, bytes = 0, all = bs->staged_bytes + len;
    if (chunk < b->chunk_count && b->chunks[chunk].data) return 0; /* the same again */
    if (all > STAGED_BYTES_EACH_MAX) {
        staged_of(bs, b->stager, &count, &bytes);
        bytes += len;
    }
    if (all > STAGED_BYTES_MAX || bytes > STAGED_BYTES_EACH_MAX)
        return kn_err_set(
            err, KN_ELIMIT,
            "what is being submitted and not sealed has %zu MiB, %zu of them of this client: the farm "
            "keeps %zu, %zu of one client. Submit it in parts, or ask again later",
            all >> 20, bytes >> 20, STAGED_BYTES_MAX >> 20, STAGED_BYTES_EACH_MAX >> 20);
    return 0;
}

int batches_add(struct batches *bs, struct kn_msg *msg, struct kept_batch **out, struct kn_err *err) {
    const struct kn_submit_begin *g = &msg->u.submit_begin;
    const char *unknown;
    uint64_t more = kn_features_read(g->features, g->feature_count, &unknown);
    if (unknown)
        return kn_err_set(err, KN_EUNSUPPORTED,
                          "it needs %.64s, which this kiln-coordinator (%s) does not know: a later one does",
                          unknown, KILN_VERSION);
    struct kept_batch *b = calloc(1, sizeof *b);
    if (!b) goto no_memory;
    memcpy(b->id, g->batch, sizeof b->id);
    b->tasks = g->tasks;
    b->chunk_count = g->chunks;
    b->priority = g->priority;
    b->state = KN_BATCH_ACTIVE;
    b->features = KN_FEATURES_BEFORE | more;
    b->touched_ms = kn_clock_ms();
    b->chunks = calloc(g->chunks, sizeof *b->chunks);
    b->task_group = calloc(g->tasks, sizeof *b->task_group);
    b->group_index = kn_map_create(KN_GROUPS_PER_BATCH_MAX);
    if (!b->chunks || !b->task_group || !b->group_index) goto no_memory;
    int rc = kn_map_put(bs->by_id, b->id, sizeof b->id, b);
    if (rc != 0) {
        batch_destroy(b);
        return kn_err_set(err, rc, "batches: %s", kn_err_words(rc));
    }
    b->msg = msg;
    b->begin = g;
    b->has_owner = g->owner_len == sizeof b->owner.bytes;
    if (b->has_owner) memcpy(b->owner.bytes, g->owner, sizeof b->owner.bytes);
    msg->u.submit_begin.owner = b->owner.bytes; /* the key may be taken off the list meanwhile */
    msg->u.submit_begin.owner_len = b->has_owner ? sizeof b->owner.bytes : 0;
    bs->staged_count++;
    *out = b;
    return 0;
no_memory:
    batch_destroy(b);
    return kn_err_set(err, KN_ENOMEM, "batch: out of memory");
}

void batches_sealed(struct batches *bs, struct kept_batch *b) {
    assert(b->phase < BATCH_SEALED);
    parts_forget(bs, b);
    b->phase = BATCH_SEALED;
    bs->staged_count--;
    bs->staged_bytes -= b->chunk_bytes;
    batch_free_groups(b);
}

void batch_leaves(struct batches *bs, struct kept_batch *b, const struct farm_batch_view *last) {
    assert(b->phase == BATCH_SEALED);
    b->phase = BATCH_REMOVING;
    bs->removing++;
    b->leaving = malloc(sizeof *b->leaving);
    if (!b->leaving) return; /* it is not listed any more, and that is all */
    *b->leaving = *last;
    /* What it waits for is borrowed from workers that may be forgotten meanwhile. */
    b->leaving->wait = KN_WAIT_NONE;
    b->leaving->wait_worker = b->leaving->wait_class = b->leaving->wait_reason = "";
}

void batches_drop(struct batches *bs, struct kept_batch *b) {
    if (b->phase < BATCH_SEALED) batches_sealed(bs, b);
    if (b->phase == BATCH_REMOVING) bs->removing--;
    cache_forget(bs->cache, b);
    bs->history_bytes -= b->history_bytes;
    kn_map_remove(bs->by_id, b->id, sizeof b->id);
    batch_destroy(b);
}

/* ---- chunks and groups */

uint32_t batch_chunk_tasks(const struct kept_batch *b, uint32_t chunk) {
    return chunk + 1 < b->chunk_count ? KN_TASKS_PER_CHUNK_MAX : b->tasks - chunk * KN_TASKS_PER_CHUNK_MAX;
}

uint32_t batch_chunks_missing(const struct kept_batch *b) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < b->chunk_count; i++)
        if (!b->chunks[i].data) n++;
    return n;
}

void batch_free_groups(struct kept_batch *b) {
    free(b->groups);
    free(b->task_group);
    kn_map_destroy(b->group_index);
    b->groups = NULL;
    b->task_group = NULL;
    b->group_index = NULL;
    b->group_count = b->group_cap = 0;
}

/* The number of the group that a task belongs to. */
static int group_of(struct kept_batch *b, const struct kn_task *t, uint16_t *out, struct kn_err *err) {
    struct farm_group g;
    memset(&g, 0, sizeof g);
    memcpy(g.model, b->begin->models[t->model_index].sha256, sizeof g.model);
    g.width = t->width;
    g.height = t->height;
    g.steps = t->steps;
    g.sampler = (uint32_t)t->sampler;
    g.schedule = (uint32_t)t->schedule;
    g.needs = kn_task_needs(t);
    uintptr_t n = (uintptr_t)kn_map_get(b->group_index, &g, FARM_GROUP_BYTES);
    if (n == 0) {
        if (b->group_count == KN_GROUPS_PER_BATCH_MAX)
            return kn_err_set(err, KN_ELIMIT, "more than %d different settings in one batch",
                              KN_GROUPS_PER_BATCH_MAX);
        if (b->group_count == b->group_cap) {
            uint32_t cap = b->group_cap ? b->group_cap * 2 : 4;
            struct farm_group *v = realloc(b->groups, cap * sizeof *v);
            if (!v) return kn_err_set(err, KN_ENOMEM, "batch: out of memory");
            b->groups = v;
            b->group_cap = cap;
        }
        n = b->group_count + 1u;
        int rc = kn_map_put(b->group_index, &g, FARM_GROUP_BYTES, (void *)n);
        if (rc != 0) return kn_err_set(err, rc, "batch: %s", kn_err_words(rc));
        b->groups[b->group_count++] = g;
    }
    *out = (uint16_t)(n - 1);
    return 0;
}

int batches_add_chunk(struct batches *bs, struct kept_batch *b, uint32_t chunk, const void *data, size_t len,
                      struct kn_err *err) {
    struct kn_chunk c;
    if (chunk >= b->chunk_count)
        return kn_err_set(err, KN_EINVAL, "chunk %u: the batch has %u chunks", chunk, b->chunk_count);
    struct batch_chunk *have = &b->chunks[chunk];
    if (have->data) {
        if (have->len == len && memcmp(have->data, data, len) == 0) return KN_EEXIST;
        return kn_err_set(err, KN_ESTATE, "chunk %u: it came before, with other tasks", chunk);
    }
    int rc = kn_chunk_unpack(data, len, b->begin->model_count, &c, err);
    if (rc != 0) return kn_err_prefix(err, "chunk %u", chunk);
    if (c.count != batch_chunk_tasks(b, chunk))
        rc = kn_err_set(err, KN_EINVAL, "chunk %u: %zu tasks, not %u: all chunks but the last have %d", chunk,
                        c.count, batch_chunk_tasks(b, chunk), KN_TASKS_PER_CHUNK_MAX);
    uint32_t first = chunk * KN_TASKS_PER_CHUNK_MAX;
    for (size_t i = 0; rc == 0 && i < c.count; i++) {
        const struct kn_model_info *m = &b->begin->models[c.v[i].model_index];
        if (m->size_multiple) rc = kn_task_resolve(&c.v[i], m, err); /* all is set: it only checks */
        uint64_t undeclared = kn_task_needs(&c.v[i]) & ~b->features;
        char words[KN_FEATURES_TEXT_MAX];
        if (rc == 0 && undeclared)
            rc = kn_err_set(err, KN_EPROTO, "%s: the batch does not say that it needs this",
                            kn_features_words(undeclared, words));
        size_t bytes = TASK_BYTES + strlen(c.v[i].prompt) + strlen(c.v[i].negative);
        if (bytes > b->task_bytes) b->task_bytes = bytes;
        if (rc == 0) rc = group_of(b, &c.v[i], &b->task_group[first + i], err);
        if (rc != 0) kn_err_prefix(err, "task %zu", first + i);
    }
    kn_chunk_fini(&c);
    if (rc != 0) return rc;
    have->data = malloc(len);
    if (!have->data) return kn_err_set(err, KN_ENOMEM, "chunk %u: out of memory", chunk);
    memcpy(have->data, data, len);
    have->len = (uint32_t)len;
    b->chunk_bytes += len;
    bs->staged_bytes += len;
    b->touched_ms = kn_clock_ms();
    return 0;
}

int batches_add_part(struct batches *bs, struct kept_batch *b, const struct kn_submit_chunk *c,
                     struct kn_err *err) {
    if (c->chunk >= b->chunk_count)
        return kn_err_set(err, KN_EINVAL, "chunk %u: the batch has %u chunks", c->chunk, b->chunk_count);
    bool last = c->part + 1 == c->parts;
    if (c->part >= c->parts || c->tasks_len > KN_CHUNK_PART_BYTES ||
        (!last && c->tasks_len != KN_CHUNK_PART_BYTES))
        return kn_err_set(err, KN_EINVAL, "chunk %u: part %u of %u has %zu bytes; all but the last have %u",
                          c->chunk, c->part, c->parts, c->tasks_len, KN_CHUNK_PART_BYTES);
    const struct batch_chunk *have = &b->chunks[c->chunk];
    size_t from = (size_t)c->part * KN_CHUNK_PART_BYTES;
    if (have->data) {
        if (from + c->tasks_len <= have->len && memcmp(have->data + from, c->tasks, c->tasks_len) == 0)
            return KN_EEXIST;
        return kn_err_set(err, KN_ESTATE, "chunk %u: it came before, with other tasks", c->chunk);
    }
    struct batch_parts *p = b->parts;
    if (c->part == 0) {
        parts_forget(bs, b);
        int rc = batches_may_stage(bs, b, c->chunk, (size_t)c->parts * KN_CHUNK_PART_BYTES, err);
        if (rc != 0) return rc;
        p = b->parts = calloc(1, sizeof *p);
        if (!p) return kn_err_set(err, KN_ENOMEM, "chunk %u: out of memory", c->chunk);
        p->chunk = c->chunk;
        p->parts = c->parts;
        kn_buf_init(&p->bytes, KN_CHUNK_BYTES_MAX);
    }
    if (!p || p->chunk != c->chunk || p->parts != c->parts || c->part > p->have)
        return kn_err_set(err, KN_ESTATE,
                          "chunk %u: the parts before part %u are not here: begin with the first", c->chunk,
                          c->part);
    b->touched_ms = kn_clock_ms();
    if (c->part < p->have) return PART_HELD; /* said again */
    int rc = kn_buf_append(&p->bytes, c->tasks, c->tasks_len);
    if (rc != 0) return kn_err_set(err, rc, "chunk %u: more than %u bytes", c->chunk, KN_CHUNK_BYTES_MAX);
    bs->staged_bytes += c->tasks_len;
    p->have++;
    if (!last) return PART_HELD;
    rc = batches_add_chunk(bs, b, c->chunk, p->bytes.data, p->bytes.len, err);
    parts_forget(bs, b);
    return rc;
}

uint32_t batch_shard_tasks(const struct kept_batch *b) {
    size_t n = b->task_bytes ? KN_CHUNK_PART_BYTES / b->task_bytes : KN_SHARD_TASKS_MAX;
    return n < KN_SHARD_TASKS_MAX ? (uint32_t)n : KN_SHARD_TASKS_MAX;
}

const struct kn_task *batches_task(struct batches *bs, struct kept_batch *b, uint32_t task,
                                   struct kn_err *err) {
    uint32_t chunk = task / KN_TASKS_PER_CHUNK_MAX;
    struct batch_cache *c = bs->cache;
    struct chunk_slot *oldest = &c->slots[0];
    assert(task < b->tasks && b->chunks[chunk].data);
    c->clock++;
    for (int i = 0; i < CACHE_SLOTS; i++) {
        struct chunk_slot *s = &c->slots[i];
        if (s->batch == b && s->chunk == chunk) {
            s->used = c->clock;
            return &s->tasks.v[task % KN_TASKS_PER_CHUNK_MAX];
        }
        if (!s->batch ? oldest->batch != NULL : oldest->batch && s->used < oldest->used) oldest = s;
    }
    kn_chunk_fini(&oldest->tasks);
    oldest->batch = NULL;
    if (kn_chunk_unpack(b->chunks[chunk].data, b->chunks[chunk].len, b->begin->model_count, &oldest->tasks,
                        err) != 0)
        return NULL;
    oldest->batch = b;
    oldest->chunk = chunk;
    oldest->used = c->clock;
    return &oldest->tasks.v[task % KN_TASKS_PER_CHUNK_MAX];
}

/* ---- names, records, failures */

int batch_set_name(struct kept_batch *b, uint32_t number, const char *text) {
    if (number == 0 || number > UINT16_MAX) return KN_ELIMIT;
    if (!b->name_index && !(b->name_index = kn_map_create(UINT16_MAX))) return KN_ENOMEM;
    if (number >= b->name_cap) {
        uint32_t cap = b->name_cap ? b->name_cap : 8;
        while (cap <= number) cap *= 2;
        char **v = realloc(b->names, cap * sizeof *v);
        if (!v) return KN_ENOMEM;
        memset(v + b->name_cap, 0, (cap - b->name_cap) * sizeof *v);
        b->names = v;
        b->name_cap = cap;
    }
    char *copy = strdup(text);
    if (!copy) return KN_ENOMEM;
    int rc = kn_map_put(b->name_index, text, strlen(text), (void *)(uintptr_t)number);
    if (rc != 0 && rc != KN_EEXIST) {
        free(copy);
        return rc;
    }
    free(b->names[number]);
    b->names[number] = copy;
    if (number >= b->name_count) b->name_count = number + 1;
    return 0;
}

int batch_name(struct kept_batch *b, const char *text, uint16_t *out, bool *is_new) {
    *is_new = false;
    *out = 0;
    if (!text[0]) return 0;
    uintptr_t have = b->name_index ? (uintptr_t)kn_map_get(b->name_index, text, strlen(text)) : 0;
    if (have) {
        *out = (uint16_t)have;
        return 0;
    }
    uint32_t number = b->name_count > 0 ? b->name_count : 1; /* 0 is "" */
    if (number > UINT16_MAX) return 0;
    int rc = batch_set_name(b, number, text);
    if (rc != 0) return rc;
    *out = (uint16_t)number;
    *is_new = true;
    return 0;
}

const char *batch_name_text(const struct kept_batch *b, uint32_t number) {
    return number < b->name_count && b->names[number] ? b->names[number] : "";
}

int batch_set_record(struct kept_batch *b, uint32_t task, const struct store_record *r) {
    if (task >= b->tasks) return KN_EINVAL;
    if (!b->records && !(b->records = calloc(b->tasks, sizeof *b->records))) return KN_ENOMEM;
    store_record_pack(r, b->records[task]);
    if (b->order < r->order) b->order = r->order;
    if (b->failures) {
        free(b->failures[task]);
        b->failures[task] = NULL;
    }
    return 0;
}

void batch_clear_record(struct kept_batch *b, uint32_t task) {
    if (b->records && task < b->tasks) memset(b->records[task], 0, sizeof b->records[task]);
}

bool batch_record(const struct kept_batch *b, uint32_t task, struct store_record *out) {
    return b->records && task < b->tasks && store_record_unpack(b->records[task], out);
}

int batch_set_failure(struct kept_batch *b, const struct store_failure *f) {
    if (f->task >= b->tasks) return KN_EINVAL;
    if (!b->failures && !(b->failures = calloc(b->tasks, sizeof *b->failures))) return KN_ENOMEM;
    size_t len = strlen(f->reason);
    struct batch_failure *x = malloc(sizeof *x + len + 1);
    if (!x) return KN_ENOMEM;
    x->code = f->code;
    x->attempt = f->attempt;
    x->order = f->order;
    snprintf(x->worker, sizeof x->worker, "%s", f->worker);
    memcpy(x->reason, f->reason, len + 1);
    free(b->failures[f->task]);
    b->failures[f->task] = x;
    if (b->order < f->order) b->order = f->order;
    return 0;
}

const struct batch_failure *batch_failure(const struct kept_batch *b, uint32_t task) {
    return b->failures && task < b->tasks ? b->failures[task] : NULL;
}

void batch_clear_failures(struct kept_batch *b) {
    for (uint32_t i = 0; b->failures && i < b->tasks; i++) free(b->failures[i]);
    free(b->failures);
    b->failures = NULL;
}

void reply_to_add(struct reply_to *v, int *count, const struct reply_to *to) {
    if (*count == WAITERS_MAX) {
        memmove(v, v + 1, (WAITERS_MAX - 1) * sizeof *v);
        --*count;
    }
    v[(*count)++] = *to;
}

/* ---- stories of attempts */

const char *batch_history(const struct kept_batch *b, uint32_t task) {
    const struct kept_history *h = b->histories ? kn_map_get(b->histories, &task, sizeof task) : NULL;
    return h ? h->text : "";
}

const char *batch_next_history(const struct kept_batch *b, size_t *pos, uint32_t *task) {
    const struct kept_history *h = b->histories ? kn_map_next(b->histories, pos) : NULL;
    if (!h) return NULL;
    *task = h->task;
    return h->text;
}

int batches_set_history(struct batches *bs, struct kept_batch *b, uint32_t task, const char *text) {
    if (task >= b->tasks) return KN_EINVAL;
    if (!b->histories && !(b->histories = kn_map_create(b->tasks))) return KN_ENOMEM;
    struct kept_history *old = kn_map_get(b->histories, &task, sizeof task);
    size_t len = strlen(text), before = old ? strlen(old->text) : 0;
    if (bs->history_bytes - before + len > HISTORY_BYTES_MAX) return KN_ELIMIT;
    struct kept_history *h = malloc(sizeof *h + len + 1);
    if (!h) return KN_ENOMEM;
    h->task = task;
    memcpy(h->text, text, len + 1);
    if (old) kn_map_remove(b->histories, &task, sizeof task);
    free(old);
    b->history_bytes -= before;
    bs->history_bytes -= before;
    int rc = kn_map_put(b->histories, &task, sizeof task, h);
    if (rc) {
        free(h);
        return rc;
    }
    b->history_bytes += len;
    bs->history_bytes += len;
    return 0;
}
