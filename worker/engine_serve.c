/* The child that has a worker's engine: see engine_shared.h. Its first thread opens the engine, drops minibatches, and
 * ends the process when the worker is gone, whatever the others are at; a thread for each of the engine's stages does
 * what the worker's thread of that stage asks for. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "worker/engine_shared.h"
#include "worker/models.h"

#define NAP_US 500     /* between two looks for room for a picture */
#define PLACE_MS 60000 /* for the child of before to end */
#define PLACE_LOOK_MS 10

struct serving_lane {
    struct serving *s;
    int fd;
    struct lane_signs *signs;
    pthread_t thread;
    uint64_t sign_us; /* its last sign of life in this request; 0: none yet */
};

/* A request on its way through the engine; a begun minibatch keeps it. */
struct request {
    struct serving *s;
    struct serving_lane *lane; /* that is or was at it */
    struct kn_msg *msg;        /* owns; the tasks */
    struct engine_work work;
    struct kiln_callbacks cb;
    struct engine_minibatch *minibatch; /* owns; NULL: none was begun */
    int count;                          /* of its pictures */
};

struct serving {
    struct engine *engine;
    struct model_list models;
    struct region *region;
    struct serving_lane lane[LANES];
    int control;
    pthread_mutex_t lock; /* of the next line */
    struct request *minibatches[MINIBATCHES_MAX];
    unsigned next, oldest; /* slots so far: given out; known to be free again. One thread at a time */
};

/* ---- signs of life */

/* The first sign of life of a stage comes about as long after its beginning as the next after it. That of a whole render
 * comes later: a model may be loaded before. Of another kind of work it is not known how long its steps take. */
static void begin_kind(struct serving_lane *l, const struct request *r, bool stage) {
    const struct kn_task *t = r->work.tasks;
    uint32_t about[] = {engine_place(l->s->engine, r->work.model), t->width, t->height, (uint32_t)r->count};
    kn_digest kind;
    kn_sha256(about, sizeof about, kind);
    l->sign_us = stage ? kn_clock_us() : 0;
    atomic_store(&l->signs->step, 0);
    atomic_store(&l->signs->steps, t->steps);
    if (memcmp(kind, l->signs->kind, sizeof kind) == 0) return;
    memcpy(l->signs->kind, kind, sizeof kind);
    atomic_store(&l->signs->same, 0);
    atomic_store(&l->signs->gaps, 0);
}

static void give_sign(struct serving_lane *l, bool work_done) {
    uint64_t now = kn_clock_us();
    if (work_done && l->sign_us) {
        unsigned n = atomic_load(&l->signs->gaps);
        uint64_t gap = now - l->sign_us;
        atomic_store(&l->signs->gap_us[n % GAPS], gap < UINT32_MAX ? (uint32_t)gap : UINT32_MAX);
        atomic_store(&l->signs->gaps, n + 1);
    }
    l->sign_us = now;
    if (work_done) atomic_fetch_add(&l->signs->same, 1);
    atomic_fetch_add(&l->signs->signs, 1);
}

static int on_step(void *ctx, int step, int steps) {
    struct serving_lane *l = ((struct request *)ctx)->lane;
    atomic_store(&l->signs->step, (unsigned)step);
    atomic_store(&l->signs->steps, (unsigned)steps);
    give_sign(l, true);
    return atomic_load(&l->signs->abort);
}

/* ---- pictures */

/* A picture's piece of the ring: never empty, so that a full ring and an empty one differ. */
static uint64_t piece_of(uint64_t bytes) {
    return (bytes + 64) / 64 * 64;
}

/* Room for so many bytes behind the newest picture, or at the start again. False: there is none yet. */
static bool find_room(struct serving *s, uint64_t bytes, uint64_t *at) {
    struct pixel_slot *slots = s->region->slots;
    while (s->oldest != s->next && atomic_load(&slots[s->oldest % SLOTS].state) == SLOT_FREE) s->oldest++;
    *at = 0;
    if (s->oldest == s->next) return true;
    if (s->next - s->oldest == SLOTS) return false;
    const struct pixel_slot *newest = &slots[(s->next - 1) % SLOTS];
    uint64_t from = slots[s->oldest % SLOTS].at, to = newest->at + piece_of(newest->bytes);
    uint64_t piece = piece_of(bytes);
    if (to > from && to + piece > RING_BYTES) return piece <= from; /* at the start */
    *at = to;
    return to > from || to + piece <= from;
}

static int on_image(void *ctx, const struct kiln_image *image) {
    struct request *r = ctx;
    struct serving_lane *l = r->lane;
    struct serving *s = l->s;
    uint64_t bytes = image->rgb ? (uint64_t)image->task->width * image->task->height * 3 : 0, at;
    give_sign(l, true);
    while (!find_room(s, bytes, &at)) { /* the worker's encoder is behind: that is no hang */
        if (atomic_load(&l->signs->abort)) return 1;
        nanosleep(&(struct timespec){.tv_nsec = NAP_US * 1000}, NULL);
        give_sign(l, false);
    }
    struct pixel_slot *slot = &s->region->slots[s->next % SLOTS];
    slot->index = image->index;
    slot->status = image->status;
    slot->step = image->step;
    slot->flat = image->flat;
    slot->render_ms = image->render_ms;
    slot->at = at;
    slot->bytes = bytes;
    if (bytes) memcpy(s->region->pixels + at, image->rgb, bytes);
    atomic_store(&slot->state, SLOT_FULL);
    s->next++;
    if (atomic_exchange(&s->region->wanted, false) && frame_send(l->fd, FRAME_KICK, NULL, 0, NULL, 0))
        return 1;
    return atomic_load(&l->signs->abort);
}

/* ---- requests */

static void request_free(struct request *r) {
    if (!r) return;
    if (r->minibatch) r->s->engine->ops->drop(r->minibatch);
    kn_msg_destroy(r->msg);
    free(r);
}

/* Takes the number's place, or empties it. */
static struct request *exchange(struct serving *s, uint32_t number, struct request *r) {
    pthread_mutex_lock(&s->lock);
    struct request *before = s->minibatches[number];
    s->minibatches[number] = r;
    pthread_mutex_unlock(&s->lock);
    return before;
}

/* The minibatch that was begun under this number, for a lane; NULL: there is none. */
static struct request *come(struct serving_lane *l, uint32_t number) {
    pthread_mutex_lock(&l->s->lock);
    struct request *r = l->s->minibatches[number];
    if (r) r->lane = l;
    pthread_mutex_unlock(&l->s->lock);
    return r;
}

/* The worker asks one lane after another where it matters. So that this order is one of memory too, what a lane does
 * lies between two of these. */
static void keep_order(struct serving *s) {
    pthread_mutex_lock(&s->lock);
    pthread_mutex_unlock(&s->lock);
}

static int request_read(struct serving_lane *l, const struct work_head *h, const void *tasks, size_t len,
                        struct request **out, struct kn_err *err) {
    struct request *r = calloc(1, sizeof *r);
    if (!r) return kn_err_set(err, KN_EOOM, "out of memory");
    int rc = kn_msg_decode(tasks, len, &r->msg, err);
    if (!rc && (h->model >= l->s->models.count || r->msg->type != KN_MSG_SHARD_GRANT))
        rc = kn_err_set(err, KN_EINTERNAL, "a request that is none");
    if (rc) {
        request_free(r);
        return rc;
    }
    r->s = l->s;
    r->lane = l;
    r->count = (int)r->msg->u.shard_grant.count;
    r->work = (struct engine_work){.model = &l->s->models.v[h->model].info,
                                   .tasks = r->msg->u.shard_grant.tasks,
                                   .count = r->count,
                                   .attempt = h->attempt,
                                   .probe = h->probe};
    r->cb = (struct kiln_callbacks){.ctx = r, .step = on_step, .image = on_image};
    *out = r;
    return 0;
}

static int serve_render(struct serving_lane *l, const struct work_head *h, const void *tasks, size_t len,
                        struct kn_err *err) {
    struct request *r;
    int rc = request_read(l, h, tasks, len, &r, err);
    if (rc) return rc;
    r->count = 0; /* it is cut by the engine */
    begin_kind(l, r, false);
    rc = l->s->engine->ops->render(l->s->engine, &r->work, &r->cb, err);
    request_free(r);
    return rc;
}

static int serve_begin(struct serving_lane *l, const struct work_head *h, const void *tasks, size_t len,
                       int *count, struct kn_err *err) {
    struct request *r = NULL;
    int rc = request_read(l, h, tasks, len, &r, err);
    if (!rc) rc = l->s->engine->ops->begin(l->s->engine, &r->work, 0, &r->cb, &r->minibatch, &r->count, err);
    if (rc) {
        request_free(r);
        return rc;
    }
    *count = r->count;
    request_free(exchange(l->s, h->minibatch, r));
    return 0;
}

static int serve_stage(struct serving_lane *l, enum engine_frame_type type, const struct work_head *h,
                       struct kn_err *err) {
    const struct engine_ops *ops = l->s->engine->ops;
    struct request *r = come(l, h->minibatch);
    if (!r) return kn_err_set(err, KN_EINTERNAL, "no such minibatch");
    begin_kind(l, r, true);
    return type == FRAME_DENOISE ? ops->denoise(r->minibatch, err) : ops->finish(r->minibatch, err);
}

/* A request of any lane. False: it is none. */
static bool serve(struct serving_lane *l, enum engine_frame_type type, const struct kn_buf *body) {
    struct work_head h;
    struct answer a = {0};
    struct kn_err err = {0};
    if (body->len < sizeof h) return false;
    memcpy(&h, body->data, sizeof h);
    if (h.minibatch >= MINIBATCHES_MAX) return false;
    const char *tasks = body->data + sizeof h;
    size_t len = body->len - sizeof h;
    bool staged = l->s->engine->ops->begin != NULL;
    keep_order(l->s);
    if (type == FRAME_RENDER)
        a.code = serve_render(l, &h, tasks, len, &err);
    else if (type == FRAME_BEGIN && staged)
        a.code = serve_begin(l, &h, tasks, len, &a.count, &err);
    else if ((type == FRAME_DENOISE || type == FRAME_FINISH) && staged)
        a.code = serve_stage(l, type, &h, &err);
    else if (type == FRAME_DROP)
        request_free(exchange(l->s, h.minibatch, NULL));
    else
        return false;
    keep_order(l->s);
    snprintf(a.text, sizeof a.text, "%s", err.text);
    return frame_send(l->fd, FRAME_ANSWER, &a, sizeof a, NULL, 0) == 0;
}

static void *lane_main(void *arg) {
    struct serving_lane *l = arg;
    enum engine_frame_type type;
    struct kn_buf body;
    kn_buf_init(&body, FRAME_BODY_MAX);
    while (frame_receive(l->fd, &type, &body) == 0 && serve(l, type, &body)) continue;
    kn_buf_fini(&body);
    return NULL; /* the worker is gone, and the first thread knows it too */
}

/* ---- opening */

static int read_models(struct serving *s, const char *p, const char *end, uint32_t count,
                       struct kn_err *err) {
    for (uint32_t i = 0; i < count; i++) {
        struct kn_model_info info;
        uint32_t len;
        if ((size_t)(end - p) < sizeof info + sizeof len)
            return kn_err_set(err, KN_EINTERNAL, "too few models");
        memcpy(&info, p, sizeof info);
        memcpy(&len, p + sizeof info, sizeof len);
        p += sizeof info + sizeof len;
        if ((size_t)(end - p) < len) return kn_err_set(err, KN_EINTERNAL, "a folder is cut");
        int rc = models_add(&s->models, &info, err);
        if (rc) return rc;
        if (len && !(s->models.v[i].dir = strndup(p, len)))
            return kn_err_set(err, KN_ENOMEM, "out of memory");
        p += len;
    }
    return 0;
}

/* Takes the worker's place on this machine, which is free when the last child that had it is gone altogether, whatever
 * its driver held. It is held until this process ends. */
static int take_place(const char *place, struct kn_err *err) {
    uint64_t since = kn_clock_ms();
    while (place_bind("engine", place) < 0) {
        if (errno != EADDRINUSE) return kn_err_set(err, KN_EIO, "its place: %s", strerror(errno));
        if (kn_clock_ms() - since >= PLACE_MS)
            return kn_err_set(err, KN_EAGAIN, "the engine of this worker from before has not ended in %d s",
                              PLACE_MS / 1000);
        nanosleep(&(struct timespec){.tv_nsec = PLACE_LOOK_MS * 1000000}, NULL);
    }
    return 0;
}

static int open_engine(struct serving *s, const struct kn_buf *body, struct kn_err *err) {
    struct open_head h;
    char spec[KN_PATH_MAX];
    if (body->len < sizeof h) return kn_err_set(err, KN_EINTERNAL, "too short");
    memcpy(&h, body->data, sizeof h);
    const char *p = body->data + sizeof h, *end = body->data + body->len;
    if (h.spec_len >= sizeof spec || (size_t)(end - p) < h.spec_len)
        return kn_err_set(err, KN_EINTERNAL, "too short");
    memcpy(spec, p, h.spec_len);
    spec[h.spec_len] = '\0';
    kn_log_init("engine", h.level);
    kn_log_rotate(LOG_FILE_BYTES_MAX);
    h.place[sizeof h.place - 1] = '\0';
    int rc = h.place[0] ? take_place(h.place, err) : 0;
    if (!rc) rc = read_models(s, p + h.spec_len, end, h.model_count, err);
    struct engine_options opt = {.spec = spec,
                                 .device_index = h.device_index,
                                 .precision = h.precision,
                                 .fastest = h.fastest,
                                 .threads = h.threads,
                                 .memory_bytes_max = h.memory_bytes_max,
                                 .model_bytes_max = h.model_bytes_max,
                                 .now = &s->region->now};
    return rc ? rc : engine_open(&opt, s->models.v, s->models.count, &s->engine, err);
}

static int tell_ready(struct serving *s, int rc, const struct kn_err *err) {
    struct ready r = {.code = rc};
    snprintf(r.text, sizeof r.text, "%s", err->text);
    if (!rc) {
        const struct engine *e = s->engine;
        snprintf(r.backend, sizeof r.backend, "%s", e->backend);
        snprintf(r.device, sizeof r.device, "%s", e->device);
        snprintf(r.version, sizeof r.version, "%s", e->version);
        r.batch_max = e->batch_max;
        r.staged = e->ops->begin != NULL;
    }
    return frame_send(s->control, FRAME_READY, &r, sizeof r, NULL, 0);
}

/* The control socket's requests, until the worker wants no more. True: it said so. */
static bool serve_control(struct serving *s, struct kn_buf *body) {
    struct serving_lane control = {.s = s, .fd = s->control};
    enum engine_frame_type type;
    while (frame_receive(s->control, &type, body) == 0) {
        if (type == FRAME_CLOSE) return true;
        if (type != FRAME_DROP || !serve(&control, type, body)) return false;
    }
    return false;
}

static bool map_region(struct serving *s, int fd) {
    void *p = mmap(NULL, sizeof(struct region), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) return false;
    s->region = p;
    close(fd);
    return true;
}

int engine_child_main(const char *descriptors) {
    static struct serving s;
    int fd[LANE_SOCKETS], memory;
    /* Whoever ends the worker (a terminal, systemd) signals this process too; the worker decides when it ends. */
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    prctl(PR_SET_NAME, "kiln-engine");
    if (sscanf(descriptors, "%d,%d,%d,%d,%d", &fd[0], &fd[1], &fd[2], &fd[3], &memory) != 5 ||
        !map_region(&s, memory)) {
        fputs("kiln-worker: " ENGINE_CHILD_WORD " is for the worker itself\n", stderr);
        return 1;
    }
    s.control = fd[LANE_CONTROL];
    pthread_mutex_init(&s.lock, NULL);
    enum engine_frame_type type;
    struct kn_err err = {0};
    struct kn_buf body;
    kn_buf_init(&body, FRAME_BODY_MAX);
    if (frame_receive(s.control, &type, &body) || type != FRAME_OPEN) _exit(1);
    int rc = open_engine(&s, &body, &err);
    if (tell_ready(&s, rc, &err) || rc) _exit(1);
    for (int i = 0; i < LANES; i++) {
        s.lane[i] = (struct serving_lane){.s = &s, .fd = fd[i], .signs = &s.region->lane[i]};
        if (pthread_create(&s.lane[i].thread, NULL, lane_main, &s.lane[i])) _exit(1);
    }
    if (!serve_control(&s, &body)) _exit(1); /* whatever the others are at */
    for (int i = 0; i < LANES; i++) pthread_join(s.lane[i].thread, NULL);
    for (uint32_t i = 0; i < MINIBATCHES_MAX; i++) request_free(exchange(&s, i, NULL));
    engine_close(s.engine);
    models_fini(&s.models);
    kn_buf_fini(&body);
    return 0;
}
