/* See lost.h.
 *
 * A retry looks at a batch's objects in turns: a few hundred of them on a thread of the collector's, then the
 * loop goes on. For the first WHOLE_MS each file is read, its digest compared, and the picture decoded; a batch too large
 * for that has the rest looked at for being there only (what is damaged among them is found when it is fetched). What
 * is lost is voided in the store at once, by its record: a task that was rendered again meanwhile has another.
 * The core hears of all of them together, once the store has answered. */
#include "coordinator/lost.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/carry_out.h"
#include "coordinator/inspect.h"
#include "coordinator/send.h"

#define LOOKS_A_TURN 256
#define TASKS_A_TURN 4096 /* gone through for those */
#define WHOLE_MS 10000
#define AGAIN_MS 20 /* when the collector has too much to read */

struct retry {
    struct retry *next;
    struct server *s;
    kn_id batch;
    struct reply_to waiters[WAITERS_MAX];
    int waiter_count;
    uint64_t begun_ms;
    uint32_t at; /* the next task to be looked at */
    size_t looked, unreadable, refused;
    size_t open;     /* voids that the store has not answered */
    uint32_t *tasks; /* owns; voided */
    size_t count, cap;
    bool looking;      /* a look is under way */
    uv_timer_t *timer; /* owns; for another try; closed after this struct is gone */
};

struct voiding {
    struct retry *r;
    uint32_t task;
    struct store_record record;
};

static void retry_unlink(struct retry *r) {
    struct retry **p = &r->s->retries;
    while (*p != r) p = &(*p)->next;
    *p = r->next;
}

static void free_handle(uv_handle_t *h) {
    free(h);
}

static void retry_free(struct retry *r) {
    uv_close((uv_handle_t *)r->timer, free_handle);
    free(r->tasks);
    free(r);
}

/* All was looked at, and the store has answered: now the core, and the client. */
static void finish(struct retry *r) {
    struct server *s = r->s;
    struct farm_event ev = {.type = EV_OBJECTS_LOST};
    memcpy(ev.u.objects_lost.batch, r->batch, sizeof ev.u.objects_lost.batch);
    ev.u.objects_lost.tasks = r->tasks;
    ev.u.objects_lost.count = (uint32_t)r->count;
    char id[KN_UUID_TEXT];
    kn_uuid_format(r->batch, id);
    retry_unlink(r);
    if (r->count > 0 || r->unreadable > 0)
        kn_warn("objects_lost batch=%s looked=%zu lost=%zu unreadable=%zu", id, r->looked, r->count,
                r->unreadable);
    struct kept_batch *b = batches_find(&s->batches, r->batch);
    for (size_t i = 0; b && i < r->count; i++) batch_clear_record(b, r->tasks[i]);
    int rc = r->count > 0 ? server_step(s, &ev) : 0;
    ev = (struct farm_event){.type = EV_BATCH_RETRY};
    memcpy(ev.u.batch.id, r->batch, sizeof ev.u.batch.id);
    if (rc == 0) rc = server_step(s, &ev);
    const char *text = rc == KN_ENOENT ? "no such batch" : rc == KN_ESTATE ? "not possible now" : "";
    if (rc == 0 && r->refused > 0) {
        rc = KN_EAGAIN;
        text = "some lost pictures are not queued: the store did not take it; ask again";
    } else if (rc == 0 && r->unreadable > 0) {
        rc = KN_EIO;
        text = "some pictures cannot be read now; see the coordinator's log";
    }
    b = batches_find(&s->batches, r->batch);
    for (int i = 0; i < r->waiter_count; i++) {
        if (rc == 0 && b)
            server_await_state(s, b, &r->waiters[i], 0, "");
        else
            send_reply(s, &r->waiters[i], rc, text);
    }
    retry_free(r);
}

static void on_voided(void *ctx, int code, const void *data, size_t len) {
    struct voiding *v = ctx;
    struct retry *r = v->r;
    (void)data;
    (void)len;
    if (code == KN_ECANCELED) { /* the store is closed, and so are the retries */
        free(v);
        return;
    }
    r->open--;
    /* KN_EEXIST: it had been voided before, and the answer was lost. */
    if (code != 0 && code != KN_EEXIST)
        r->refused++;
    else
        r->tasks[r->count++] = v->task;
    free(v);
    if (r->open == 0 && !r->looking && r->at == UINT32_MAX) finish(r);
}

static void void_one(struct retry *r, struct kept_batch *b, const struct collect_look *x) {
    struct voiding *v = malloc(sizeof *v);
    struct store_record have;
    if (r->count + r->open == r->cap) {
        size_t cap = r->cap ? r->cap * 2 : 64;
        uint32_t *tasks = realloc(r->tasks, cap * sizeof *tasks);
        if (tasks) {
            r->tasks = tasks;
            r->cap = cap;
        }
    }
    if (!v || r->count + r->open == r->cap || !batch_record(b, x->tag, &have)) {
        free(v);
        r->refused++;
        return;
    }
    *v = (struct voiding){r, x->tag, have};
    if (memcmp(have.sha256, x->sha256, sizeof have.sha256) != 0 ||
        store_void(r->s->store, r->batch, x->tag, &v->record, on_voided, v) != 0) {
        r->refused++;
        free(v);
        return;
    }
    r->open++;
}

/* How the picture of that record must be. */
static void look_for(const struct server *s, const kn_id batch, uint32_t task, const struct store_record *rec,
                     struct collect_look *v) {
    memcpy(v->sha256, rec->sha256, sizeof v->sha256);
    v->tag = task;
    v->picture = v->want.decoded = true;
    farm_task_size(s->farm, batch, task, &v->want.width, &v->want.height);
    memcpy(v->want.pixels, rec->pixels, sizeof v->want.pixels);
}

/* Whoever rendered a picture that is bad is looked at closely from now on: it may have brought it so. */
static void note_bad(struct server *s, const struct kept_batch *b, uint32_t task) {
    struct store_record rec;
    if (batch_record(b, task, &rec)) inspect_bad(s, batch_name_text(b, rec.worker));
}

static void look_on(struct retry *r);

static void on_looked(void *ctx, const struct collect_look *v, size_t count) {
    struct retry *r = ctx;
    struct kept_batch *b = batches_find(&r->s->batches, r->batch);
    r->looking = false;
    r->looked += count;
    for (size_t i = 0; b && b->phase == BATCH_SEALED && i < count; i++) {
        if (v[i].code == KN_ECORRUPT) note_bad(r->s, b, v[i].tag);
        if (v[i].code == KN_ENOENT || v[i].code == KN_ECORRUPT)
            void_one(r, b, &v[i]);
        else if (v[i].code != 0)
            r->unreadable++;
    }
    look_on(r);
}

static void on_again(uv_timer_t *t) {
    look_on(t->data);
}

static void look_on(struct retry *r) {
    struct kept_batch *b = batches_find(&r->s->batches, r->batch);
    if (!b || b->phase != BATCH_SEALED || !b->records || r->at >= b->tasks) {
        r->at = UINT32_MAX; /* the end, or it was removed meanwhile */
        if (r->open == 0) finish(r);
        return;
    }
    struct collect_look *v = calloc(LOOKS_A_TURN, sizeof *v);
    uint32_t from = r->at;
    size_t n = 0;
    for (; v && r->at < b->tasks && r->at - from < TASKS_A_TURN && n < LOOKS_A_TURN; r->at++) {
        struct store_record rec;
        if (!batch_record(b, r->at, &rec)) continue;
        look_for(r->s, r->batch, r->at, &rec, &v[n++]);
    }
    bool whole = kn_clock_ms() - r->begun_ms < WHOLE_MS;
    r->looking = true;
    if (v && collect_look(r->s->collect, v, n, whole, on_looked, r) == 0) return;
    free(v);
    r->looking = false;
    r->at = from;
    uv_timer_start(r->timer, on_again, AGAIN_MS, 0);
}

void lost_retry(struct server *s, struct reply_to *to, const kn_id batch) {
    for (struct retry *r = s->retries; r; r = r->next) {
        if (memcmp(r->batch, batch, sizeof(kn_id)) != 0) continue;
        reply_to_add(r->waiters, &r->waiter_count, to);
        return;
    }
    struct kept_batch *b = batches_find(&s->batches, batch);
    struct retry *r = b && b->phase == BATCH_SEALED ? calloc(1, sizeof *r) : NULL;
    if (r && !(r->timer = malloc(sizeof *r->timer))) {
        free(r);
        r = NULL;
    }
    if (!r) {
        send_reply(s, to, b && b->phase == BATCH_SEALED ? KN_ENOMEM : KN_ENOENT, b ? "" : "no such batch");
        return;
    }
    r->s = s;
    memcpy(r->batch, batch, sizeof(kn_id));
    reply_to_add(r->waiters, &r->waiter_count, to);
    r->begun_ms = kn_clock_ms();
    uv_timer_init(s->loop, r->timer);
    r->timer->data = r;
    r->next = s->retries;
    s->retries = r;
    look_on(r);
}

/* ---- one alone */

struct single {
    struct server *s;
    kn_id batch;
    uint32_t task;
    struct store_record record;
};

static void on_single(void *ctx, int code, const void *data, size_t len) {
    struct single *x = ctx;
    struct server *s = x->s;
    struct store_record have;
    (void)data;
    (void)len;
    struct kept_batch *b = code == KN_ECANCELED || s->closing ? NULL : batches_find(&s->batches, x->batch);
    /* KN_EEXIST: it had been voided before, and the answer was lost; or another record stands by now. */
    bool stands = b && batch_record(b, x->task, &have) && have.order == x->record.order &&
                  memcmp(have.sha256, x->record.sha256, sizeof have.sha256) == 0;
    if ((code == 0 || code == KN_EEXIST) && stands) {
        struct farm_event ev = {.type = EV_OBJECTS_LOST};
        memcpy(ev.u.objects_lost.batch, x->batch, sizeof ev.u.objects_lost.batch);
        ev.u.objects_lost.tasks = &x->task;
        ev.u.objects_lost.count = 1;
        batch_clear_record(b, x->task);
        int rc = server_step(s, &ev);
        if (rc != 0) kn_warn("object_lost_refused task=%u code=%d", x->task, rc);
    }
    free(x);
}

void lost_void(struct server *s, const kn_id batch, uint32_t task, const uint8_t sha256[KN_SHA256_BYTES]) {
    struct kept_batch *b = batches_find(&s->batches, batch);
    struct single *x = b && b->phase == BATCH_SEALED ? malloc(sizeof *x) : NULL;
    char id[KN_UUID_TEXT];
    if (!x) return;
    *x = (struct single){.s = s, .task = task};
    memcpy(x->batch, batch, sizeof x->batch);
    kn_uuid_format(batch, id);
    bool is_it = batch_record(b, task, &x->record) && memcmp(x->record.sha256, sha256, KN_SHA256_BYTES) == 0;
    if (is_it) kn_warn("object_lost batch=%s task=%u reason=\"lost or damaged: rendered again\"", id, task);
    if (!is_it || store_void(s->store, batch, task, &x->record, on_single, x) != 0) free(x);
}

/* ---- told by a client */

struct reported {
    struct server *s;
    struct reply_to to;
    kn_id batch;
};

static void on_reported(void *ctx, const struct collect_look *v, size_t count) {
    struct reported *x = ctx;
    struct kept_batch *b = batches_find(&x->s->batches, x->batch);
    bool bad = v->code == KN_ENOENT || v->code == KN_ECORRUPT;
    (void)count;
    if (b && b->phase == BATCH_SEALED && bad) {
        note_bad(x->s, b, v->tag);
        lost_void(x->s, x->batch, v->tag, v->sha256);
    }
    send_reply(x->s, &x->to,
               bad       ? 0
               : v->code ? v->code
                         : KN_ESTATE,
               bad       ? ""
               : v->code ? kn_err_words(v->code)
                         : "the farm's picture is as it should be");
    free(x);
}

void lost_report(struct server *s, struct reply_to *to, const struct kn_picture_report *p) {
    struct kept_batch *b = batches_find(&s->batches, p->batch);
    struct store_record rec;
    if (!b || b->phase != BATCH_SEALED || !batch_record(b, p->task, &rec) ||
        memcmp(rec.sha256, p->sha256, sizeof rec.sha256) != 0) {
        send_reply(s, to, KN_ENOENT, "the farm names no such picture (any more)");
        return;
    }
    struct reported *x = malloc(sizeof *x);
    struct collect_look *v = calloc(1, sizeof *v);
    int rc = x && v ? 0 : KN_ENOMEM;
    if (rc == 0) {
        *x = (struct reported){.s = s, .to = *to};
        memcpy(x->batch, p->batch, sizeof x->batch);
        look_for(s, p->batch, p->task, &rec, v);
        rc = collect_look(s->collect, v, 1, true, on_reported, x);
    }
    if (rc == 0) return;
    free(x);
    free(v);
    send_reply(s, to, rc, kn_err_words(rc));
}

void lost_note(struct server *s, const uint8_t sha256[KN_SHA256_BYTES], int code) {
    s->lost_code = code;
    memcpy(s->lost_sha256, sha256, sizeof s->lost_sha256);
    s->lost_asked++;
}

void lost_sweep(struct server *s) {
    char hex[KN_SHA256_HEX];
    if (s->lost_asked == 0) return;
    kn_hex(s->lost_sha256, sizeof s->lost_sha256, hex);
    kn_warn(
        "objects_not_served count=%zu last=%s code=%d reason=\"lost or damaged: kiln retry renders them "
        "again\"",
        s->lost_asked, hex, s->lost_code);
    s->lost_asked = 0;
}

void lost_fini(struct server *s) {
    while (s->retries) {
        struct retry *r = s->retries;
        s->retries = r->next;
        retry_free(r);
    }
}
