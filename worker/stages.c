/* See stages.h. One mutex guards all that is shared; it is never held while something is rendered or encoded.
 * The counters that change with each denoising step are atomic instead. */
#include "worker/stages.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"

#define WAIT_MS 500 /* how often a stage that waits for room says that it is alive */

struct queue {
    struct stage_event *first, *last;
};

#define PARTS_WAITING_MAX 1 /* between two of the engine's stages */

struct queued_grant {
    struct grant *grant;                    /* owns a reference */
    struct stage_event *started, *finished; /* owned: made beforehand, so that its end can always be told */
};

/* A grant that a stage has taken. Freed when its last part is. */
struct stage_run {
    struct stage_run *next; /* taken later */
    struct queued_grant q;
    atomic_bool abort; /* it is not wanted any more, or stop */
    bool begun;        /* its denoising; STARTED was told */
    bool withdrawn;    /* no event of it is to come */
    int parts;         /* not yet done, and one more while it is being cut */
    atomic_uint images;
    uint64_t begun_ms;
    int rc; /* the first failure */
    char reason[KN_REASON_MAX + 1];
};

/* A minibatch of a grant on its way through the engine; the whole grant where the engine has no stages. */
struct stage_part {
    struct stage_part *next;
    struct stages *s;
    struct stage_run *run;
    int first, count;
    struct engine_work work;
    struct kiln_callbacks cb;
    struct engine_minibatch *minibatch; /* owns; NULL: no stages */
};

struct stage_parts {
    struct stage_part *first, *last;
    int count;
};

enum { TEXTS, DENOISING, DECODING, ENCODER, THREADS };

struct stages {
    struct stages_options opt;
    pthread_t threads[THREADS];
    pthread_mutex_t lock;
    pthread_cond_t wake[THREADS]; /* something came for it, room was made for what it has, or stop */
    bool stop;
    struct queued_grant grants[KN_SHARDS_PER_WORKER_MAX + 1]; /* and a probe picture */
    size_t grant_count;
    struct stage_run *runs;             /* taken, the oldest first */
    struct stage_run *running;          /* one of runs: the one that is denoised */
    struct stage_parts ready, denoised; /* between the engine's stages */
    bool has_model;
    kn_digest model_sha256;
    struct queue pixels, events;
    uint64_t pixel_bytes, unacked_bytes;
    size_t unacked;
    atomic_uint step, steps; /* of what is denoised */
    uint32_t minibatch;      /* images that are denoised together; 0: the engine says */
    atomic_ullong alive_ms;
};

static void push(struct queue *q, struct stage_event *e) {
    e->next = NULL;
    if (q->last)
        q->last->next = e;
    else
        q->first = e;
    q->last = e;
}

static struct stage_event *pop(struct queue *q) {
    struct stage_event *e = q->first;
    if (e && !(q->first = e->next)) q->last = NULL;
    return e;
}

/* Of the pixels, once they are encoded or not wanted. */
static void release_pixels(struct stage_event *e) {
    if (e->kept)
        e->let_go(e->kept);
    else
        free((uint8_t *)(uintptr_t)e->rgb);
    e->rgb = NULL;
    e->kept = NULL;
}

void stage_event_free(struct stage_event *e) {
    if (!e) return;
    upload_free(e->upload);
    grant_unref(e->grant);
    release_pixels(e);
    free(e);
}

static struct stage_event *new_event(enum stage_event_type type, struct grant *grant) {
    struct stage_event *e = calloc(1, sizeof *e);
    if (!e) return NULL;
    e->type = type;
    e->grant = grant_ref(grant);
    return e;
}

static void alive(struct stages *s) {
    atomic_store(&s->alive_ms, kn_clock_ms());
}

/* Waits until woken, or for WAIT_MS. With the lock. */
static void wait_a_while(struct stages *s, pthread_cond_t *c) {
    uint64_t until = kn_clock_ms() + WAIT_MS;
    struct timespec t = {.tv_sec = (time_t)(until / 1000), .tv_nsec = (long)(until % 1000) * 1000000};
    pthread_cond_timedwait(c, &s->lock, &t);
}

static void tell_loop(struct stages *s, struct stage_event *e) {
    pthread_mutex_lock(&s->lock);
    push(&s->events, e);
    pthread_mutex_unlock(&s->lock);
    s->opt.wake(s->opt.ctx);
}

/* ---- a grant's way through the engine */

static void push_part(struct stage_parts *q, struct stage_part *p) {
    p->next = NULL;
    if (q->last)
        q->last->next = p;
    else
        q->first = p;
    q->last = p;
    q->count++;
}

static struct stage_part *pop_part(struct stage_parts *q) {
    struct stage_part *p = q->first;
    if (p && !(q->first = p->next)) q->last = NULL;
    if (p) q->count--;
    return p;
}

static void fail(struct stages *s, struct stage_run *r, int rc, const char *text) {
    pthread_mutex_lock(&s->lock);
    if (!r->rc) {
        r->rc = rc;
        snprintf(r->reason, sizeof r->reason, "%.*s", KN_REASON_MAX, text);
    }
    pthread_mutex_unlock(&s->lock);
}

static void free_run(struct stage_run *r) {
    stage_event_free(r->q.started);
    stage_event_free(r->q.finished);
    grant_unref(r->q.grant);
    free(r);
}

/* Out of the list, with the lock. */
static void forget_run(struct stages *s, struct stage_run *r) {
    struct stage_run **at = &s->runs;
    while (*at != r) at = &(*at)->next;
    *at = r->next;
}

/* A part is done, or the cutting. With the last one goes the run: its end is told behind its pictures. */
static void run_done(struct stages *s, struct stage_run *r) {
    pthread_mutex_lock(&s->lock);
    if (--r->parts > 0) {
        pthread_mutex_unlock(&s->lock);
        return;
    }
    forget_run(s, r);
    struct stage_event *started = NULL;
    if (!r->withdrawn && !r->begun) { /* it failed before */
        started = r->q.started;
        r->q.started = NULL;
        push(&s->events, started);
    }
    if (!r->withdrawn) {
        struct stage_event *e = r->q.finished;
        r->q.finished = NULL;
        e->code = r->rc;
        e->images = atomic_load(&r->images);
        e->render_ms = r->begun ? (uint32_t)(kn_clock_ms() - r->begun_ms) : 0;
        snprintf(e->reason, sizeof e->reason, "%s", r->reason);
        if (r->rc == 0) {
            s->has_model = true;
            memcpy(s->model_sha256, r->q.grant->shard->model_sha256, sizeof s->model_sha256);
        }
        push(&s->pixels, e);
        pthread_cond_signal(&s->wake[ENCODER]);
    }
    pthread_mutex_unlock(&s->lock);
    if (started) s->opt.wake(s->opt.ctx);
    free_run(r);
}

static void part_done(struct stages *s, struct stage_part *p) {
    if (p->minibatch) s->opt.engine->ops->drop(p->minibatch);
    struct stage_run *r = p->run;
    free(p);
    run_done(s, r);
}

/* Hands a part to the next stage when there is room. Waiting for it is no sign of life: the next stage may
 * hang. */
static void hand_on(struct stages *s, struct stage_part *p, struct stage_parts *to, int from_thread,
                    int to_thread) {
    pthread_mutex_lock(&s->lock);
    while (!s->stop && to->count >= PARTS_WAITING_MAX) pthread_cond_wait(&s->wake[from_thread], &s->lock);
    push_part(to, p); /* with stop too: it is dropped at the end */
    pthread_cond_signal(&s->wake[to_thread]);
    pthread_mutex_unlock(&s->lock);
}

/* The next part for a thread, or NULL at the end. */
static struct stage_part *next_part(struct stages *s, struct stage_parts *from, int thread, int before) {
    pthread_mutex_lock(&s->lock);
    while (!s->stop && !from->first) pthread_cond_wait(&s->wake[thread], &s->lock);
    struct stage_part *p = s->stop ? NULL : pop_part(from);
    pthread_cond_signal(&s->wake[before]);
    pthread_mutex_unlock(&s->lock);
    return p;
}

static int on_step(void *ctx, int step, int steps) {
    struct stage_part *p = ctx;
    struct stages *s = p->s;
    atomic_store(&s->step, (unsigned)step);
    atomic_store(&s->steps, (unsigned)steps);
    alive(s);
    return atomic_load(&p->run->abort);
}

/* The pixels of an image, kept where they are if the engine can do that. False: no memory. */
static bool take_pixels(const struct engine_ops *ops, struct stage_event *e, const struct kiln_image *image,
                        size_t bytes) {
    e->width = image->task->width;
    e->height = image->task->height;
    if (ops->keep) {
        e->let_go = ops->let_go;
        e->kept = ops->keep(image);
        e->rgb = image->rgb;
        return true;
    }
    uint8_t *copy = malloc(bytes);
    if (copy) memcpy(copy, image->rgb, bytes);
    e->rgb = copy;
    return copy != NULL;
}

static int on_image(void *ctx, const struct kiln_image *image) {
    struct stage_part *p = ctx;
    struct stage_run *r = p->run;
    struct stages *s = p->s;
    size_t bytes = (size_t)image->task->width * image->task->height * 3;
    struct stage_event *e = new_event(image->status ? STAGE_FAILED : STAGE_IMAGE, r->q.grant);
    alive(s);
    if (!e) goto no_memory;
    e->place = (uint32_t)(p->first + image->index);
    if (image->status) {
        bytes = 0;
        e->code = image->status;
        snprintf(e->reason, sizeof e->reason, "%s, seen at step %d", kn_err_words(image->status),
                 image->step);
    } else {
        e->upload = calloc(1, sizeof *e->upload);
        if (!e->upload || !take_pixels(s->opt.engine->ops, e, image, bytes)) goto no_memory;
        e->upload->grant = grant_ref(r->q.grant);
        e->upload->place = e->place;
        e->upload->flat = image->flat;
        e->upload->render_ms = image->render_ms < 4e9 ? (uint32_t)(image->render_ms + 0.5) : UINT32_MAX;
    }
    int thread = p->minibatch ? DECODING : DENOISING;
    pthread_mutex_lock(&s->lock);
    while (!s->stop && !atomic_load(&r->abort) && s->pixel_bytes &&
           s->pixel_bytes + bytes > s->opt.pixel_bytes_max) {
        wait_a_while(s, &s->wake[thread]);
        alive(s);
    }
    s->pixel_bytes += bytes;
    push(&s->pixels, e);
    pthread_cond_signal(&s->wake[ENCODER]);
    pthread_mutex_unlock(&s->lock);
    atomic_fetch_add(&r->images, 1);
    alive(s);
    return atomic_load(&r->abort);
no_memory:
    stage_event_free(e);
    fail(s, r, KN_EOOM, "no memory for a picture's pixels");
    return 1;
}

/* The engine died or hung of this one, and goes on. */
static void on_failed(void *ctx, int index, int code, const char *reason) {
    struct stage_part *p = ctx;
    struct stage_event *e = new_event(STAGE_FAILED, p->run->q.grant);
    alive(p->s);
    if (!e) {
        fail(p->s, p->run, code, reason);
        return;
    }
    e->place = (uint32_t)(p->first + index);
    e->code = code;
    snprintf(e->reason, sizeof e->reason, "%.*s", KN_REASON_MAX, reason);
    pthread_mutex_lock(&p->s->lock);
    push(&p->s->pixels, e); /* behind the pictures before it */
    pthread_cond_signal(&p->s->wake[ENCODER]);
    pthread_mutex_unlock(&p->s->lock);
}

/* ---- the first stage: grants are cut in parts, their texts encoded */

static struct stage_run *take_grant(struct stages *s) {
    struct stage_run *r = calloc(1, sizeof *r);
    pthread_mutex_lock(&s->lock);
    while (!s->stop && (s->grant_count == 0 || !r)) {
        if (s->grant_count == 0)
            pthread_cond_wait(&s->wake[TEXTS], &s->lock);
        else
            wait_a_while(s, &s->wake[TEXTS]); /* for memory */
        if (!r) r = calloc(1, sizeof *r);
    }
    if (s->stop) {
        pthread_mutex_unlock(&s->lock);
        free(r);
        return NULL;
    }
    r->q = s->grants[0];
    r->parts = 1;
    memmove(s->grants, s->grants + 1, --s->grant_count * sizeof s->grants[0]);
    struct stage_run **at = &s->runs;
    if (!*at) { /* what was idle until now */
        atomic_store(&s->step, 0);
        atomic_store(&s->steps, r->q.grant->shard->tasks->steps);
    }
    while (*at) at = &(*at)->next;
    *at = r;
    alive(s);
    pthread_mutex_unlock(&s->lock);
    return r;
}

static struct stage_part *new_part(struct stages *s, struct stage_run *r, int first) {
    struct stage_part *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    const struct kn_shard_grant *g = r->q.grant->shard;
    *p = (struct stage_part){.s = s, .run = r, .first = first};
    p->work = (struct engine_work){.model = r->q.grant->model,
                                   .tasks = g->tasks,
                                   .count = (int)g->count,
                                   .attempt = g->attempt,
                                   .probe = r->q.grant->probe,
                                   .stop = &r->abort,
                                   .failed = on_failed};
    p->cb = (struct kiln_callbacks){.ctx = p, .step = on_step, .image = on_image};
    pthread_mutex_lock(&s->lock);
    r->parts++;
    pthread_mutex_unlock(&s->lock);
    return p;
}

static bool unwanted(struct stages *s, struct stage_run *r) {
    pthread_mutex_lock(&s->lock);
    bool no = s->stop || r->rc || r->withdrawn || atomic_load(&r->abort);
    pthread_mutex_unlock(&s->lock);
    return no;
}

static void cut(struct stages *s, struct stage_run *r) {
    const struct engine_ops *ops = s->opt.engine->ops;
    int count = (int)r->q.grant->shard->count;
    if (!r->q.grant->model) fail(s, r, KN_EMODEL, "this worker has no such model");
    for (int at = 0; at < count && !unwanted(s, r);) {
        struct kn_err err = {0};
        struct stage_part *p = new_part(s, r, at);
        if (!p) {
            fail(s, r, KN_EOOM, "no memory for a minibatch");
            break;
        }
        p->count = count;
        int rc =
            ops->begin ? ops->begin(s->opt.engine, &p->work, at, &p->cb, &p->minibatch, &p->count, &err) : 0;
        if (rc) {
            fail(s, r, rc, err.text);
            part_done(s, p);
            break;
        }
        at += p->count;
        hand_on(s, p, &s->ready, TEXTS, DENOISING);
    }
    run_done(s, r);
}

static void *texts_main(void *arg) {
    struct stages *s = arg;
    for (struct stage_run *r; (r = take_grant(s)) != NULL;) cut(s, r);
    return NULL;
}

/* ---- the second: the loop, or all of it */

/* True if the part is still wanted. A run begins with its first part. */
static bool begin_run(struct stages *s, const struct stage_part *p) {
    struct stage_run *r = p->run;
    struct stage_event *started = NULL;
    pthread_mutex_lock(&s->lock);
    bool wanted = !s->stop && !r->rc && !r->withdrawn && !atomic_load(&r->abort);
    if (!wanted && !r->rc) {
        r->rc = KN_ECANCELED;
        snprintf(r->reason, sizeof r->reason, "%s", kn_err_words(KN_ECANCELED));
    }
    if (wanted) {
        if (!r->begun) {
            started = r->q.started;
            r->q.started = NULL;
            push(&s->events, started);
            r->begun = true;
            r->begun_ms = kn_clock_ms();
        }
        s->running = r;
        s->minibatch = p->minibatch ? (uint32_t)p->count : 0;
        atomic_store(&s->step, 0);
        atomic_store(&s->steps, r->q.grant->shard->tasks->steps);
        alive(s);
    }
    pthread_mutex_unlock(&s->lock);
    if (started) s->opt.wake(s->opt.ctx);
    return wanted;
}

static void *denoising_main(void *arg) {
    struct stages *s = arg;
    const struct engine_ops *ops = s->opt.engine->ops;
    for (struct stage_part *p; (p = next_part(s, &s->ready, DENOISING, TEXTS)) != NULL;) {
        struct kn_err err = {0};
        int rc = 0;
        bool wanted = begin_run(s, p);
        if (wanted)
            rc = p->minibatch ? ops->denoise(p->minibatch, &err)
                              : ops->render(s->opt.engine, &p->work, &p->cb, &err);
        if (rc) fail(s, p->run, rc, err.text);
        pthread_mutex_lock(&s->lock);
        s->running = NULL;
        pthread_mutex_unlock(&s->lock);
        if (wanted && !rc && p->minibatch)
            hand_on(s, p, &s->denoised, DENOISING, DECODING);
        else
            part_done(s, p);
    }
    return NULL;
}

/* ---- the third: the pictures */

static void *decoding_main(void *arg) {
    struct stages *s = arg;
    for (struct stage_part *p; (p = next_part(s, &s->denoised, DECODING, DENOISING)) != NULL;) {
        struct kn_err err = {0};
        int rc = atomic_load(&p->run->abort) ? kn_err_set(&err, KN_ECANCELED, "stopped")
                                             : s->opt.engine->ops->finish(p->minibatch, &err);
        if (rc) fail(s, p->run, rc, err.text);
        part_done(s, p);
    }
    return NULL;
}

/* ---- the encoder's thread */

/* The digest of the pixels is over the rows of RGB bytes from the top, nothing between them (base/spec.h). */
static int encode(struct stage_event *e, struct kn_err *err) {
    const struct kn_task *t = &e->grant->shard->tasks[e->place];
    struct kn_buf text, png;
    kn_buf_init(&text, 4 * (size_t)KN_PROMPT_BYTES_MAX);
    kn_buf_init(&png, KN_IMAGE_BYTES_MAX);
    int rc = kn_task_parameters(t, e->grant->model, "kiln " KILN_VERSION, &text);
    if (rc != 0) kn_err_set(err, rc, "its settings as text: %s", kn_err_words(rc));
    if (rc == 0) rc = kiln_png_encode(e->rgb, e->width, e->height, text.data, &png, err);
    if (rc == 0) {
        kn_sha256(e->rgb, (size_t)e->width * e->height * 3, e->upload->pixels_sha256);
        kn_sha256(png.data, png.len, e->upload->sha256);
        e->upload->png = bytes_create(&png);
        if (!e->upload->png) rc = kn_err_set(err, KN_ENOMEM, "out of memory");
    }
    kn_buf_fini(&text);
    kn_buf_fini(&png);
    return rc;
}

static void encode_event(struct stages *s, struct stage_event *e) {
    if (e->type != STAGE_IMAGE) return;
    struct kn_err err = {0};
    bool probe = e->grant->probe; /* it is only looked at, and nobody waits for its bytes */
    int rc = probe ? 0 : encode(e, &err);
    release_pixels(e);
    pthread_mutex_lock(&s->lock);
    s->pixel_bytes -= (uint64_t)e->width * e->height * 3;
    if (probe) {
        upload_free(e->upload);
        e->upload = NULL;
    } else if (rc == 0) {
        s->unacked++;
        s->unacked_bytes += e->upload->png->len;
    }
    pthread_cond_broadcast(&s->wake[DENOISING]); /* whichever of them wait for room */
    pthread_cond_broadcast(&s->wake[DECODING]);
    pthread_mutex_unlock(&s->lock);
    if (rc != 0) {
        e->type = STAGE_FAILED;
        e->code = rc;
        snprintf(e->reason, sizeof e->reason, "%.*s", KN_REASON_MAX, err.text);
        upload_free(e->upload);
        e->upload = NULL;
    }
}

static void *encoder_main(void *arg) {
    struct stages *s = arg;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        struct stage_event *e = s->pixels.first;
        bool full = e && e->type == STAGE_IMAGE && s->unacked &&
                    (s->unacked_bytes >= s->opt.unacked_bytes_max || s->unacked >= s->opt.unacked_max);
        if (s->stop) break;
        if (!e || full) {
            pthread_cond_wait(&s->wake[ENCODER], &s->lock);
            continue;
        }
        pop(&s->pixels);
        pthread_mutex_unlock(&s->lock);
        encode_event(s, e);
        tell_loop(s, e);
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* ---- the loop's side */

static void stop(struct stages *s, int threads) {
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    for (struct stage_run *r = s->runs; r; r = r->next) atomic_store(&r->abort, true);
    for (int i = 0; i < THREADS; i++) pthread_cond_broadcast(&s->wake[i]);
    pthread_mutex_unlock(&s->lock);
    for (int i = 0; i < threads; i++) pthread_join(s->threads[i], NULL);
}

static void fini(struct stages *s) {
    for (int i = 0; i < THREADS; i++) pthread_cond_destroy(&s->wake[i]);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

int stages_create(const struct stages_options *opt, struct stages **out, struct kn_err *err) {
    static void *(*const mains[THREADS])(void *) = {texts_main, denoising_main, decoding_main, encoder_main};
    struct stages *s = calloc(1, sizeof *s);
    if (!s) return kn_err_set(err, KN_ENOMEM, "out of memory");
    s->opt = *opt;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&s->lock, NULL);
    for (int i = 0; i < THREADS; i++) pthread_cond_init(&s->wake[i], &attr);
    pthread_condattr_destroy(&attr);
    for (int i = 0; i < THREADS; i++) {
        int rc = pthread_create(&s->threads[i], NULL, mains[i], s);
        if (!rc) continue;
        stop(s, i);
        fini(s);
        return kn_err_set(err, KN_EIO, "starting a thread: %s", strerror(rc));
    }
    *out = s;
    return 0;
}

void stages_destroy(struct stages *s) {
    if (!s) return;
    stop(s, THREADS);
    for (struct stage_part *p; (p = pop_part(&s->ready)) != NULL;) part_done(s, p);
    for (struct stage_part *p; (p = pop_part(&s->denoised)) != NULL;) part_done(s, p);
    assert(!s->runs);
    for (size_t i = 0; i < s->grant_count; i++) {
        stage_event_free(s->grants[i].started);
        stage_event_free(s->grants[i].finished);
        grant_unref(s->grants[i].grant);
    }
    for (struct stage_event *e; (e = pop(&s->pixels)) != NULL;) stage_event_free(e);
    for (struct stage_event *e; (e = pop(&s->events)) != NULL;) stage_event_free(e);
    fini(s);
}

int stages_submit(struct stages *s, struct grant *grant) {
    struct queued_grant q = {.started = new_event(STAGE_STARTED, grant),
                             .finished = new_event(STAGE_FINISHED, grant)};
    int rc = q.started && q.finished ? 0 : KN_ENOMEM;
    pthread_mutex_lock(&s->lock);
    if (rc == 0 && s->grant_count >= KN_SHARDS_PER_WORKER_MAX + (grant->probe ? 1u : 0u)) rc = KN_ELIMIT;
    if (rc == 0) {
        q.grant = grant_ref(grant);
        size_t at = grant->probe ? 0 : s->grant_count;
        memmove(s->grants + at + 1, s->grants + at, (s->grant_count - at) * sizeof s->grants[0]);
        s->grants[at] = q;
        s->grant_count++;
        pthread_cond_signal(&s->wake[TEXTS]);
    }
    pthread_mutex_unlock(&s->lock);
    if (rc != 0) {
        stage_event_free(q.started);
        stage_event_free(q.finished);
    }
    return rc;
}

bool stages_withdraw(struct stages *s, const struct grant *grant) {
    struct queued_grant q = {0};
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < s->grant_count && !q.grant; i++) {
        if (s->grants[i].grant != grant) continue;
        q = s->grants[i];
        s->grant_count--;
        memmove(s->grants + i, s->grants + i + 1, (s->grant_count - i) * sizeof s->grants[0]);
    }
    bool withdrawn = false;
    for (struct stage_run *r = s->runs; r && !q.grant && !withdrawn; r = r->next) {
        if (r->q.grant != grant || r->begun) continue;
        r->withdrawn = withdrawn = true; /* its parts are dropped where they are */
        atomic_store(&r->abort, true);
    }
    pthread_mutex_unlock(&s->lock);
    if (!q.grant) return withdrawn;
    stage_event_free(q.started);
    stage_event_free(q.finished);
    grant_unref(q.grant);
    return true;
}

void stages_abort(struct stages *s, const struct grant *grant) {
    pthread_mutex_lock(&s->lock);
    for (struct stage_run *r = s->runs; r; r = r->next)
        if (r->q.grant == grant) atomic_store(&r->abort, true);
    for (int i = TEXTS; i <= DECODING; i++) pthread_cond_signal(&s->wake[i]); /* what waits for room */
    pthread_mutex_unlock(&s->lock);
}

struct stage_event *stages_next(struct stages *s) {
    pthread_mutex_lock(&s->lock);
    struct stage_event *e = pop(&s->events);
    pthread_mutex_unlock(&s->lock);
    return e;
}

void stages_release(struct stages *s, size_t bytes) {
    pthread_mutex_lock(&s->lock);
    assert(s->unacked > 0 && s->unacked_bytes >= bytes);
    s->unacked--;
    s->unacked_bytes -= bytes;
    pthread_cond_signal(&s->wake[ENCODER]);
    pthread_mutex_unlock(&s->lock);
}

void stages_progress(struct stages *s, struct stages_progress *out) {
    *out = (struct stages_progress){0};
    pthread_mutex_lock(&s->lock);
    if (s->runs) { /* what is denoised, or else the oldest */
        const struct grant *grant = (s->running ? s->running : s->runs)->q.grant;
        const struct kn_shard_grant *g = grant->shard;
        uint64_t now = kn_clock_ms(), then = atomic_load(&s->alive_ms);
        out->busy = true;
        out->shard = grant->probe ? 0 : g->shard;
        memcpy(out->batch, g->batch, sizeof out->batch);
        out->tasks = (uint32_t)g->count;
        out->step = atomic_load(&s->step);
        out->steps = atomic_load(&s->steps);
        out->minibatch = s->minibatch ? s->minibatch : atomic_load(&s->opt.engine->now->minibatch);
        out->age_ms = now > then ? (uint32_t)(now - then) : 0;
    }
    out->has_model = s->has_model;
    memcpy(out->model_sha256, s->model_sha256, sizeof out->model_sha256);
    pthread_mutex_unlock(&s->lock);
}
