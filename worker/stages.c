/* See stages.h. One mutex guards all that is shared; it is never held while something is rendered or encoded.
 * What changes with each denoising step is atomic instead. */
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

struct queued_job {
    struct job *job;                        /* owns a reference */
    struct stage_event *started, *finished; /* owned: made beforehand, so that its end can always be told */
};

struct stages {
    struct stages_options opt;
    pthread_t engine_thread, encoder_thread;
    pthread_mutex_t lock;
    pthread_cond_t engine_wake, encoder_wake; /* something came, room was made, or stop */
    bool stop;
    struct queued_job jobs[KN_SHARDS_PER_WORKER_MAX];
    size_t job_count;
    struct job *running; /* borrowed: the engine's thread holds the reference */
    bool has_model;
    kn_digest model_sha256;
    struct queue pixels, events;
    uint64_t pixel_bytes, unacked_bytes;
    size_t unacked;
    atomic_bool abort; /* the running job is not wanted any more, or stop */
    atomic_uint step, steps;
    atomic_ullong alive_ms;
};

/* What the engine's callbacks need. */
struct rendering {
    struct stages *s;
    struct job *job;
    uint32_t images;
    bool no_memory;
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

void stage_event_free(struct stage_event *e) {
    if (!e) return;
    upload_free(e->upload);
    job_unref(e->job);
    free(e->rgb);
    free(e);
}

static struct stage_event *new_event(enum stage_event_type type, struct job *j) {
    struct stage_event *e = calloc(1, sizeof *e);
    if (!e) return NULL;
    e->type = type;
    e->job = job_ref(j);
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

/* ---- the engine's thread */

static int on_step(void *ctx, int step, int steps) {
    struct rendering *r = ctx;
    atomic_store(&r->s->step, (unsigned)step);
    atomic_store(&r->s->steps, (unsigned)steps);
    alive(r->s);
    return atomic_load(&r->s->abort);
}

static int on_image(void *ctx, const struct kiln_image *image) {
    struct rendering *r = ctx;
    struct stages *s = r->s;
    size_t bytes = (size_t)image->task->width * image->task->height * 3;
    struct stage_event *e = new_event(image->status ? STAGE_FAILED : STAGE_IMAGE, r->job);
    alive(s);
    if (!e) goto no_memory;
    e->place = (uint32_t)image->index;
    if (image->status) {
        bytes = 0;
        e->code = image->status;
        snprintf(e->reason, sizeof e->reason, "%s, seen at step %d", kn_err_words(image->status),
                 image->step);
    } else {
        e->rgb = malloc(bytes);
        e->upload = calloc(1, sizeof *e->upload);
        if (!e->rgb || !e->upload) goto no_memory;
        memcpy(e->rgb, image->rgb, bytes);
        e->width = image->task->width;
        e->height = image->task->height;
        e->upload->job = job_ref(r->job);
        e->upload->place = e->place;
        e->upload->flat = image->flat;
        e->upload->render_ms = image->render_ms < 4e9 ? (uint32_t)(image->render_ms + 0.5) : UINT32_MAX;
    }
    pthread_mutex_lock(&s->lock);
    while (!s->stop && !atomic_load(&s->abort) && s->pixel_bytes &&
           s->pixel_bytes + bytes > s->opt.pixel_bytes_max) {
        wait_a_while(s, &s->engine_wake);
        alive(s);
    }
    s->pixel_bytes += bytes;
    push(&s->pixels, e);
    pthread_cond_signal(&s->encoder_wake);
    pthread_mutex_unlock(&s->lock);
    r->images++;
    alive(s);
    return atomic_load(&s->abort);
no_memory:
    stage_event_free(e);
    r->no_memory = true;
    return 1;
}

static void render(struct stages *s, const struct queued_job *q) {
    const struct kn_shard_grant *g = q->job->g;
    struct rendering r = {.s = s, .job = q->job};
    struct kiln_callbacks cb = {.ctx = &r, .step = on_step, .image = on_image};
    struct engine_work w = {
        .model = q->job->model, .tasks = g->tasks, .count = (int)g->count, .attempt = g->attempt};
    struct kn_err err = {0};
    tell_loop(s, q->started);
    uint64_t begun = kn_clock_ms();
    int rc = w.model ? s->opt.engine->ops->render(s->opt.engine, &w, &cb, &err)
                     : kn_err_set(&err, KN_EMODEL, "this worker has no such model");
    if (r.no_memory) rc = kn_err_set(&err, KN_EOOM, "no memory for a picture's pixels");
    struct stage_event *e = q->finished;
    e->code = rc;
    e->images = r.images;
    e->render_ms = (uint32_t)(kn_clock_ms() - begun);
    snprintf(e->reason, sizeof e->reason, "%.*s", KN_REASON_MAX, err.text);
    pthread_mutex_lock(&s->lock);
    s->running = NULL;
    if (rc == 0) {
        s->has_model = true;
        memcpy(s->model_sha256, g->model_sha256, sizeof s->model_sha256);
    }
    push(&s->pixels, e); /* behind its pictures */
    pthread_cond_signal(&s->encoder_wake);
    pthread_mutex_unlock(&s->lock);
}

static void *engine_main(void *arg) {
    struct stages *s = arg;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (!s->stop && s->job_count == 0) pthread_cond_wait(&s->engine_wake, &s->lock);
        if (s->stop) break;
        struct queued_job q = s->jobs[0];
        memmove(s->jobs, s->jobs + 1, --s->job_count * sizeof s->jobs[0]);
        s->running = q.job;
        atomic_store(&s->abort, false);
        atomic_store(&s->step, 0);
        atomic_store(&s->steps, q.job->g->tasks->steps);
        alive(s);
        pthread_mutex_unlock(&s->lock);
        render(s, &q);
        job_unref(q.job);
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* ---- the encoder's thread */

/* The digest of the pixels is over the rows of RGB bytes from the top, nothing between them (base/spec.h). */
static int encode(struct stage_event *e, struct kn_err *err) {
    const struct kn_task *t = &e->job->g->tasks[e->place];
    struct kn_buf text, png;
    kn_buf_init(&text, 4 * (size_t)KN_PROMPT_BYTES_MAX);
    kn_buf_init(&png, KN_IMAGE_BYTES_MAX);
    int rc = kn_task_parameters(t, e->job->model, "kiln " KILN_VERSION, &text);
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
    int rc = encode(e, &err);
    free(e->rgb);
    e->rgb = NULL;
    pthread_mutex_lock(&s->lock);
    s->pixel_bytes -= (uint64_t)e->width * e->height * 3;
    if (rc == 0) {
        s->unacked++;
        s->unacked_bytes += e->upload->png->len;
    }
    pthread_cond_signal(&s->engine_wake);
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
            pthread_cond_wait(&s->encoder_wake, &s->lock);
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

int stages_create(const struct stages_options *opt, struct stages **out, struct kn_err *err) {
    struct stages *s = calloc(1, sizeof *s);
    if (!s) return kn_err_set(err, KN_ENOMEM, "out of memory");
    s->opt = *opt;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->engine_wake, &attr);
    pthread_cond_init(&s->encoder_wake, &attr);
    pthread_condattr_destroy(&attr);
    int rc = pthread_create(&s->encoder_thread, NULL, encoder_main, s);
    if (rc == 0 && (rc = pthread_create(&s->engine_thread, NULL, engine_main, s)) != 0) {
        pthread_mutex_lock(&s->lock);
        s->stop = true;
        pthread_cond_signal(&s->encoder_wake);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->encoder_thread, NULL);
    }
    if (rc != 0) {
        free(s);
        return kn_err_set(err, KN_EIO, "starting a thread: %s", strerror(rc));
    }
    *out = s;
    return 0;
}

void stages_destroy(struct stages *s) {
    if (!s) return;
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    atomic_store(&s->abort, true);
    pthread_cond_signal(&s->engine_wake);
    pthread_cond_signal(&s->encoder_wake);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->engine_thread, NULL);
    pthread_join(s->encoder_thread, NULL);
    for (size_t i = 0; i < s->job_count; i++) {
        stage_event_free(s->jobs[i].started);
        stage_event_free(s->jobs[i].finished);
        job_unref(s->jobs[i].job);
    }
    for (struct stage_event *e; (e = pop(&s->pixels)) != NULL;) stage_event_free(e);
    for (struct stage_event *e; (e = pop(&s->events)) != NULL;) stage_event_free(e);
    pthread_cond_destroy(&s->engine_wake);
    pthread_cond_destroy(&s->encoder_wake);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

int stages_submit(struct stages *s, struct job *j) {
    struct queued_job q = {.started = new_event(STAGE_STARTED, j), .finished = new_event(STAGE_FINISHED, j)};
    int rc = q.started && q.finished ? 0 : KN_ENOMEM;
    pthread_mutex_lock(&s->lock);
    if (rc == 0 && s->job_count == KN_SHARDS_PER_WORKER_MAX) rc = KN_ELIMIT;
    if (rc == 0) {
        q.job = job_ref(j);
        s->jobs[s->job_count++] = q;
        pthread_cond_signal(&s->engine_wake);
    }
    pthread_mutex_unlock(&s->lock);
    if (rc != 0) {
        stage_event_free(q.started);
        stage_event_free(q.finished);
    }
    return rc;
}

bool stages_withdraw(struct stages *s, const struct job *j) {
    struct queued_job q = {0};
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < s->job_count && !q.job; i++) {
        if (s->jobs[i].job != j) continue;
        q = s->jobs[i];
        s->job_count--;
        memmove(s->jobs + i, s->jobs + i + 1, (s->job_count - i) * sizeof s->jobs[0]);
    }
    pthread_mutex_unlock(&s->lock);
    if (!q.job) return false;
    stage_event_free(q.started);
    stage_event_free(q.finished);
    job_unref(q.job);
    return true;
}

void stages_abort(struct stages *s, const struct job *j) {
    pthread_mutex_lock(&s->lock);
    if (s->running == j) {
        atomic_store(&s->abort, true);
        pthread_cond_signal(&s->engine_wake);
    }
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
    pthread_cond_signal(&s->encoder_wake);
    pthread_mutex_unlock(&s->lock);
}

void stages_progress(struct stages *s, struct stages_progress *out) {
    *out = (struct stages_progress){0};
    pthread_mutex_lock(&s->lock);
    if (s->running) {
        const struct kn_shard_grant *g = s->running->g;
        uint64_t now = kn_clock_ms(), then = atomic_load(&s->alive_ms);
        out->busy = true;
        out->shard = g->shard;
        memcpy(out->batch, g->batch, sizeof out->batch);
        out->tasks = (uint32_t)g->count;
        out->step = atomic_load(&s->step);
        out->steps = atomic_load(&s->steps);
        out->age_ms = now > then ? (uint32_t)(now - then) : 0;
    }
    out->has_model = s->has_model;
    memcpy(out->model_sha256, s->model_sha256, sizeof out->model_sha256);
    pthread_mutex_unlock(&s->lock);
}
