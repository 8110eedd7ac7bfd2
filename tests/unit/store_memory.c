/* See store_memory.h. It keeps the contract, and nothing that lasts longer than its `struct store_disk`.
 * Answers come on the loop's next turn. Batches and tasks are few: lists will do. */
#include "tests/unit/store_memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct memory_item { /* a chunk, name, failure or charge */
    struct memory_item *next;
    uint32_t number;
    struct store_failure failure; /* its strings: owned */
    size_t len;
    uint8_t data[];
};

struct memory_batch {
    struct memory_batch *next;
    struct store_batch b;
    void *begin;
    struct memory_item *chunks, *names, *failures, *charges;
    uint8_t (*records)[STORE_RECORD_BYTES];
};

struct memory_tomb {
    struct memory_tomb *next;
    kn_id id;
    bool now;
    size_t count;
    uint8_t records[][STORE_RECORD_BYTES];
};

struct memory_entry {
    struct memory_entry *next;
    char *field, *value;
};

struct store_disk {
    struct memory_entry *lists[2]; /* by enum store_list */
    uint64_t term;
    kn_digest secret;
    struct memory_tomb *tombs;
    struct memory_batch *sealed, *staged; /* in order */
};

struct memory_answer {
    struct memory_answer *next;
    store_done done;
    void *ctx;
    int code;
    size_t len;
    uint8_t data[STORE_RECORD_BYTES];
};

struct memory_store {
    struct store base;
    struct store_disk *disk;
    uv_idle_t *idle; /* owns; closed after this struct is gone */
    struct memory_answer *first, *last;
    size_t waiting;
    bool lost;
};

static void items_free(struct memory_item **list) {
    while (*list) {
        struct memory_item *i = *list;
        *list = i->next;
        free((char *)(uintptr_t)i->failure.worker);
        free((char *)(uintptr_t)i->failure.reason);
        free(i);
    }
}

static void batch_free(struct memory_batch *b) {
    items_free(&b->chunks);
    items_free(&b->names);
    items_free(&b->failures);
    items_free(&b->charges);
    free(b->begin);
    free(b->records);
    free(b);
}

static struct memory_batch **batch_find(struct memory_batch **list, const kn_id id) {
    while (*list && memcmp((*list)->b.id, id, KN_UUID_BYTES) != 0) list = &(*list)->next;
    return list;
}

static void item_drop(struct memory_item **list, uint32_t number) {
    for (struct memory_item **p = list; *p; p = &(*p)->next) {
        if ((*p)->number != number) continue;
        struct memory_item *one = *p;
        *p = one->next;
        one->next = NULL;
        items_free(&one);
        return;
    }
}

/* Replaces the item of that number; the list is kept in order. */
static struct memory_item *item_put(struct memory_item **list, uint32_t number, const void *data,
                                    size_t len) {
    item_drop(list, number);
    struct memory_item *i = calloc(1, sizeof *i + len + 1);
    if (!i) return NULL;
    i->number = number;
    i->len = len;
    if (len) memcpy(i->data, data, len);
    while (*list && (*list)->number < number) list = &(*list)->next;
    i->next = *list;
    *list = i;
    return i;
}

static void on_idle(uv_idle_t *h);

static int answer(struct memory_store *s, store_done done, void *ctx, int code, const void *data) {
    struct memory_answer *a = calloc(1, sizeof *a);
    if (!a) return KN_ENOMEM;
    *a = (struct memory_answer){.done = done, .ctx = ctx, .code = code};
    if (data) {
        a->len = STORE_RECORD_BYTES;
        memcpy(a->data, data, a->len);
    }
    if (s->last)
        s->last->next = a;
    else
        s->first = a;
    s->last = a;
    s->waiting++;
    uv_idle_start(s->idle, on_idle);
    return 0;
}

static struct memory_answer *answer_pop(struct memory_store *s) {
    struct memory_answer *a = s->first;
    if (!a) return NULL;
    s->first = a->next;
    if (!s->first) s->last = NULL;
    s->waiting--;
    return a;
}

static void on_idle(uv_idle_t *h) {
    struct memory_store *s = h->data;
    struct memory_answer *a;
    for (size_t n = s->waiting; n > 0 && (a = answer_pop(s)); n--) {
        int code = a->code;
        if (a->done) a->done(a->ctx, code, a->len ? a->data : NULL, a->len);
        free(a);
        if (code == KN_ETERM && !s->lost) {
            s->lost = true;
            if (s->base.lost) s->base.lost(s->base.lost_ctx, code, "another coordinator took the lead");
        }
    }
    if (!s->first) uv_idle_stop(h);
}

/* What every write begins with: the fence, and the batch; NULL: *code says why not. */
static struct memory_batch *live(struct memory_store *s, const kn_id id, bool sealed, int *code) {
    struct memory_batch *b = NULL;
    *code = 0;
    if (s->base.term != s->disk->term)
        *code = KN_ETERM;
    else if (!(b = *batch_find(sealed ? &s->disk->sealed : &s->disk->staged, id)))
        *code = !sealed && *batch_find(&s->disk->sealed, id) ? KN_EEXIST : KN_EGONE;
    return b;
}

static int memory_begin(struct store *base, const struct store_batch *in, store_done done, void *ctx) {
    struct memory_store *s = (struct memory_store *)base;
    int code;
    struct memory_batch *b = live(s, in->id, false, &code);
    if (code == KN_EGONE) {
        struct memory_batch **end = &s->disk->staged;
        while (*end) end = &(*end)->next;
        if (!(b = calloc(1, sizeof *b))) return KN_ENOMEM;
        *end = b;
        code = 0;
    }
    if (code == 0) {
        void *begin = malloc(in->begin_len + 1);
        if (!begin) return KN_ENOMEM;
        memcpy(begin, in->begin, in->begin_len);
        free(b->begin);
        b->b = *in;
        b->b.sealed = false;
        b->b.state = KN_BATCH_ACTIVE;
        b->b.finished_wall_ms = 0;
        b->b.begin = b->begin = begin;
    }
    return answer(s, done, ctx, code, NULL);
}

static int memory_chunk(struct store *base, const kn_id id, uint32_t chunk, const void *data, size_t len,
                        store_done done, void *ctx) {
    struct memory_store *s = (struct memory_store *)base;
    int code;
    struct memory_batch *b = live(s, id, false, &code);
    if (b && !item_put(&b->chunks, chunk, data, len)) return KN_ENOMEM;
    return answer(s, done, ctx, code, NULL);
}

static int memory_seal(struct store *base, const kn_id id, uint32_t chunks, store_done done, void *ctx) {
    struct memory_store *s = (struct memory_store *)base;
    int code;
    struct memory_batch *b = live(s, id, false, &code);
    if (b) {
        uint32_t have = 0;
        for (struct memory_item *i = b->chunks; i; i = i->next) have++;
        if (have != chunks) code = KN_ESTATE;
        if (code == 0 && !(b->records = calloc(b->b.tasks, sizeof *b->records))) return KN_ENOMEM;
    }
    if (b && code == 0) {
        *batch_find(&s->disk->staged, id) = b->next;
        b->next = NULL;
        b->b.sealed = true;
        struct memory_batch **end = &s->disk->sealed;
        while (*end) end = &(*end)->next;
        *end = b;
    }
    return answer(s, done, ctx, code, NULL);
}

static int memory_name(struct store *base, const kn_id id, uint32_t number, const char *text) {
    struct memory_store *s = (struct memory_store *)base;
    int code;
    struct memory_batch *b = live(s, id, true, &code);
    if (b && !item_put(&b->names, number, text, strlen(text) + 1)) return KN_ENOMEM;
    return answer(s, NULL, NULL, code, NULL);
}

static int memory_commit(struct store *base, const kn_id id, uint32_t task, const struct store_record *r,
                         store_done done, void *ctx) {
    struct memory_store *s = (struct memory_store *)base;
    int code;
    struct store_record old;
    struct memory_batch *b = live(s, id, true, &code);
    if (b && b->b.state == KN_BATCH_CANCELLED) code = KN_EGONE;
    if (b && code == 0 && store_record_unpack(b->records[task], &old)) code = KN_EEXIST;
    if (b && code == 0) {
        store_record_pack(r, b->records[task]);
        item_drop(&b->failures, task);
    }
    return answer(s, done, ctx, code, code == KN_EEXIST ? b->records[task] : NULL);
}

static int memory_fail(struct store *base, const kn_id id, const struct store_failure *f, store_done done,
                       void *ctx) {
    struct memory_store *s = (struct memory_store *)base;
    int code;
    struct store_record old;
    struct memory_batch *b = live(s, id, true, &code);
    if (b && b->b.state == KN_BATCH_CANCELLED) code = KN_EGONE;
    if (b && code == 0 && store_record_unpack(b->records[f->task], &old)) code = KN_EEXIST;
    if (b && code == 0) {
        struct memory_item *i = item_put(&b->failures, f->task, NULL, 0);
        if (!i) return KN_ENOMEM;
        i->failure = *f;
        i->failure.worker = strdup(f->worker);
        i->failure.reason = strdup(f->reason);
        if (!i->failure.worker || !i->failure.reason) {
            item_drop(&b->failures, f->task);
            return KN_ENOMEM;
        }
    }
    return answer(s, done, ctx, code, NULL);
}

static int memory_void(struct store *base, const kn_id id, uint32_t task, const struct store_record *r,
                       store_done done, void *ctx) {
    struct memory_store *s = (struct memory_store *)base;
    int code;
    uint8_t packed[STORE_RECORD_BYTES];
    struct memory_batch *b = live(s, id, true, &code);
    store_record_pack(r, packed);
    if (b && code == 0 && memcmp(b->records[task], packed, sizeof packed) != 0) code = KN_EEXIST;
    if (b && code == 0) {
        memset(b->records[task], 0, sizeof packed);
        if (b->b.state == KN_BATCH_DONE) {
            b->b.state = KN_BATCH_ACTIVE;
            b->b.finished_wall_ms = 0;
        }
    }
    return answer(s, done, ctx, code, NULL);
}

static int memory_charge(struct store *base, const kn_id id, uint32_t task, uint32_t charges,
                         const char *history) {
    struct memory_store *s = (struct memory_store *)base;
    char value[4096];
    int code, len = snprintf(value, sizeof value, "%u %s", charges, history);
    struct memory_batch *b = live(s, id, true, &code);
    if (b && !item_put(&b->charges, task, value, (size_t)len + 1)) return KN_ENOMEM;
    return answer(s, NULL, NULL, code, NULL);
}

static int memory_state(struct store *base, const kn_id id, enum kn_batch_state state, int32_t priority,
                        uint64_t finished_wall_ms, bool retried, store_done done, void *ctx) {
    struct memory_store *s = (struct memory_store *)base;
    int code;
    struct memory_batch *b = live(s, id, true, &code);
    if (b) {
        b->b.state = state;
        b->b.priority = priority;
        b->b.finished_wall_ms = finished_wall_ms;
        if (retried) {
            items_free(&b->failures);
            struct memory_item *old = b->charges, *next;
            b->charges = NULL;
            for (struct memory_item *i = old; i; i = next) {
                char value[4096];
                const char *history = strchr((const char *)i->data, ' ') + 1;
                int len = snprintf(value, sizeof value, "0 %s", history);
                next = i->next;
                if (history[0] && !item_put(&b->charges, i->number, value, (size_t)len + 1)) code = KN_ENOMEM;
            }
            items_free(&old);
        }
    }
    return answer(s, done, ctx, code, NULL);
}

/* Its records stay, if it has any. */
static int entomb(struct store_disk *d, const struct memory_batch *b, bool now) {
    struct store_record r;
    bool any = false;
    for (uint32_t i = 0; b->records && i < b->b.tasks; i++) any |= store_record_unpack(b->records[i], &r);
    if (!any) return 0;
    struct memory_tomb *t = calloc(1, sizeof *t + b->b.tasks * sizeof *t->records);
    if (!t) return KN_ENOMEM;
    memcpy(t->id, b->b.id, sizeof t->id);
    t->now = now;
    t->count = b->b.tasks;
    memcpy(t->records, b->records, t->count * sizeof *t->records);
    t->next = d->tombs;
    d->tombs = t;
    return 0;
}

static int memory_bury(struct store *base, const kn_id id, size_t records, store_done done, void *ctx) {
    struct memory_store *s = (struct memory_store *)base;
    int code = s->base.term == s->disk->term ? 0 : KN_ETERM;
    for (struct memory_tomb **p = &s->disk->tombs; code == 0 && *p;) {
        struct memory_tomb *t = *p;
        if (memcmp(t->id, id, KN_UUID_BYTES) != 0 || t->count > records) {
            p = &t->next;
            continue;
        }
        *p = t->next;
        free(t);
    }
    return answer(s, done, ctx, code, NULL);
}

static int memory_confirm(struct store *base, store_done done, void *ctx) {
    struct memory_store *s = (struct memory_store *)base;
    return answer(s, done, ctx, s->base.term == s->disk->term ? 0 : KN_ETERM, NULL);
}

static int memory_remove(struct store *base, const kn_id id, bool now, store_done done, void *ctx) {
    struct memory_store *s = (struct memory_store *)base;
    int code = s->base.term == s->disk->term ? 0 : KN_ETERM;
    struct memory_batch **lists[] = {&s->disk->sealed, &s->disk->staged};
    for (size_t i = 0; code == 0 && i < 2; i++) {
        struct memory_batch **p = batch_find(lists[i], id), *b = *p;
        if (!b) continue;
        if (entomb(s->disk, b, now) != 0) return KN_ENOMEM;
        *p = b->next;
        batch_free(b);
    }
    return answer(s, done, ctx, code, NULL);
}

/* Where it is, or would be. */
static struct memory_entry **entry_find(struct store_disk *d, enum store_list list, const char *field) {
    struct memory_entry **p = &d->lists[list];
    while (*p && strcmp((*p)->field, field) != 0) p = &(*p)->next;
    return p;
}

static void entry_drop(struct memory_entry **p) {
    struct memory_entry *e = *p;
    *p = e->next;
    free(e->field);
    free(e->value);
    free(e);
}

static int entry_put(struct store_disk *d, enum store_list list, const char *field, const char *value) {
    struct memory_entry **p = entry_find(d, list, field);
    if (*p) entry_drop(p);
    if (!value[0]) return 0;
    struct memory_entry *e = calloc(1, sizeof *e);
    if (!e) return KN_ENOMEM;
    *e = (struct memory_entry){*p, strdup(field), strdup(value)};
    *p = e;
    return e->field && e->value ? 0 : KN_ENOMEM;
}

static int memory_put(struct store *base, enum store_list list, const char *field, const char *value,
                      store_done done, void *ctx) {
    struct memory_store *s = (struct memory_store *)base;
    int code = s->base.term == s->disk->term ? 0 : KN_ETERM;
    while (code == 0 && !field[0] && s->disk->lists[list]) entry_drop(&s->disk->lists[list]);
    if (code == 0 && field[0]) code = entry_put(s->disk, list, field, value);
    return answer(s, done, ctx, code, NULL);
}

static int memory_enrol(struct store *base, const char *key, const char *value, const char *token,
                        store_done done, void *ctx) {
    struct memory_store *s = (struct memory_store *)base;
    struct memory_entry *t = *entry_find(s->disk, STORE_TOKENS, token);
    int code = s->base.term == s->disk->term ? 0 : KN_ETERM;
    char left[256];
    if (code == 0 && *entry_find(s->disk, STORE_KEYS, key)) code = KN_EEXIST;
    if (code == 0 && (!t || atoi(t->value) < 1)) code = KN_EGONE;
    if (code == 0) {
        snprintf(left, sizeof left, "%d%s", atoi(t->value) - 1, strchr(t->value, ' '));
        code = entry_put(s->disk, STORE_TOKENS, token, left);
        if (code == 0) code = entry_put(s->disk, STORE_KEYS, key, value);
    }
    return answer(s, done, ctx, code, NULL);
}

static int load_batch(const struct memory_batch *b, const struct store_reader *rd, struct kn_err *err) {
    int rc = rd->batch(rd->ctx, &b->b, err);
    for (struct memory_item *i = b->chunks; rc == 0 && i; i = i->next)
        rc = rd->chunk(rd->ctx, i->number, i->data, i->len, err);
    for (struct memory_item *i = b->names; rc == 0 && i; i = i->next)
        rc = rd->name(rd->ctx, i->number, (const char *)i->data, err);
    for (uint32_t t = 0; rc == 0 && b->records && t < b->b.tasks; t++) {
        struct store_record r;
        if (store_record_unpack(b->records[t], &r)) rc = rd->record(rd->ctx, t, &r, err);
    }
    for (struct memory_item *i = b->failures; rc == 0 && i; i = i->next)
        rc = rd->failure(rd->ctx, &i->failure, err);
    for (struct memory_item *i = b->charges; rc == 0 && i; i = i->next) {
        const char *value = (const char *)i->data;
        rc = rd->charge(rd->ctx, i->number, (uint32_t)atoi(value), strchr(value, ' ') + 1, err);
    }
    if (rc == 0) rc = rd->batch_end(rd->ctx, err);
    if (rc == 0 || !store_is_batchs_own(rc)) return rc;
    struct kn_err why = *err;
    return rd->aside(rd->ctx, b->b.id, b->b.sealed, &why, err);
}

static int memory_load(struct store *base, const struct store_reader *rd, struct kn_err *err) {
    struct memory_store *s = (struct memory_store *)base;
    int rc = 0;
    for (struct memory_batch *b = s->disk->sealed; rc == 0 && b; b = b->next) rc = load_batch(b, rd, err);
    for (struct memory_batch *b = s->disk->staged; rc == 0 && b; b = b->next) rc = load_batch(b, rd, err);
    for (struct memory_tomb *t = s->disk->tombs; rc == 0 && rd->tomb && t; t = t->next)
        rc =
            rd->tomb(rd->ctx, t->id, t->now, (const uint8_t(*)[STORE_RECORD_BYTES])t->records, t->count, err);
    for (int list = 0; rd->entry && list < 2; list++)
        for (struct memory_entry *e = s->disk->lists[list]; rc == 0 && e; e = e->next)
            rc = rd->entry(rd->ctx, (enum store_list)list, e->field, e->value, err);
    return rc;
}

static size_t memory_backlog(const struct store *base) {
    return ((const struct memory_store *)base)->waiting;
}

static void free_handle(uv_handle_t *h) {
    free(h);
}

static void memory_close(struct store *base) {
    struct memory_store *s = (struct memory_store *)base;
    struct memory_answer *a;
    while ((a = answer_pop(s))) {
        if (a->done) a->done(a->ctx, KN_ECANCELED, NULL, 0);
        free(a);
    }
    uv_close((uv_handle_t *)s->idle, free_handle);
    free(s);
}

static const struct store_ops memory_ops = {
    .load = memory_load,
    .begin = memory_begin,
    .chunk = memory_chunk,
    .seal = memory_seal,
    .name = memory_name,
    .commit = memory_commit,
    .fail = memory_fail,
    .void_record = memory_void,
    .charge = memory_charge,
    .state = memory_state,
    .remove = memory_remove,
    .bury = memory_bury,
    .confirm = memory_confirm,
    .put = memory_put,
    .enrol = memory_enrol,
    .backlog = memory_backlog,
    .close = memory_close,
};

struct store_disk *store_disk_create(void) {
    struct store_disk *d = calloc(1, sizeof *d);
    if (d) kn_uuid_random(d->secret);
    return d;
}

void store_disk_destroy(struct store_disk *d) {
    if (!d) return;
    struct memory_batch **lists[] = {&d->sealed, &d->staged};
    for (size_t i = 0; i < 2; i++) {
        while (*lists[i]) {
            struct memory_batch *b = *lists[i];
            *lists[i] = b->next;
            batch_free(b);
        }
    }
    for (int list = 0; list < 2; list++)
        while (d->lists[list]) entry_drop(&d->lists[list]);
    while (d->tombs) {
        struct memory_tomb *next = d->tombs->next;
        free(d->tombs);
        d->tombs = next;
    }
    free(d);
}

int store_memory_open(struct store_disk *d, uv_loop_t *loop, struct store **out, struct kn_err *err) {
    struct memory_store *s = calloc(1, sizeof *s);
    if (s) s->idle = malloc(sizeof *s->idle);
    if (!s || !s->idle) {
        free(s);
        return kn_err_set(err, KN_ENOMEM, "store: out of memory");
    }
    uv_idle_init(loop, s->idle);
    s->idle->data = s;
    s->base.ops = &memory_ops;
    s->base.term = ++d->term;
    memcpy(s->base.secret, d->secret, sizeof d->secret);
    s->disk = d;
    *out = &s->base;
    return 0;
}
