/* The worker's side of an engine in a process of its own: an engine.h whose every call is a request to the child
 * (engine_serve.c), and what is done when there is no answer.
 *
 * A child ends by itself (a crash, the kernel for want of memory), or is killed: it says that its device failed, it gives
 * no sign of life for ten times as long as it takes between two of them as a rule, or it does not stop when it is told to.
 * The next call starts another one. Nothing of what it finished is lost: pictures lie in memory of the worker's. What was
 * in work is rendered again:
 *
 *     in a stage when the child ended, and may be why   one image at a time, and nothing else beside
 *     in a stage, and another one hung                  as it was, and nothing else beside
 *     between two stages                                the same
 *
 * An image that was alone when the child ended is the one that ended it, and is reported (engine_work.failed). Who renders
 * single images anyway, as the simulated engine and a small CPU do, needs no second look.
 *
 * Each call belongs to a thread of the worker's; `lock` guards what they share. A call that renders again goes alone: it
 * waits until no other is inside, and the others wait until it is through. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/machine.h"
#include "worker/engine_shared.h"

#define TICK_MS 50          /* how often a call that waits looks around */
#define START_MS 120000     /* until the engine is open */
#define TALK_MS 10000       /* for a frame that has begun, or an answer on the control socket */
#define CLOSE_MS 5000       /* for an engine to close */
#define HANG_MS 5000        /* the least that counts as a hang */
#define HANG_TIMES 10       /* how often the time between two signs of life that 99 % stay below */
#define SIGNS_MIN 2         /* of one kind of work, before that time is known */
#define UNKNOWN_MS 300000   /* and as long as it is not: a model may have to be loaded */
#define KILL_MS 5000        /* from SIGKILL to the end */
#define MEMORY_TRIES 3      /* of a single image for which the kernel killed the child */
#define MEMORY_LOOK_MS 1000 /* between two looks at how often it killed */
#define MINIBATCH_GUESS 8   /* where the child ended before it said how many go together */

extern char **environ;

enum cause { CAUSE_NONE, CAUSE_CRASH, CAUSE_MEMORY, CAUSE_DEVICE, CAUSE_HANG, CAUSE_STOP };

struct kept_pixels {
    struct engine_process *process; /* a reference, while the picture is kept */
    struct pixel_slot *slot;
};

/* A child. It is freed with the last of its pictures and minibatches. */
struct engine_process {
    atomic_int refs;
    pid_t pid;
    int fd[LANE_SOCKETS]; /* ours of each pair */
    struct region *region;
    unsigned taken; /* slots so far; one call at a time takes pictures */
    struct kept_pixels kept[SLOTS];
    /* guarded by the lock */
    enum cause cause; /* CAUSE_NONE: it lives */
    int culprit;      /* the socket that hung or failed; -1: any of those that were inside */
    int inside;       /* calls, then */
    unsigned minibatch;
    bool loading;
    char why[KN_REASON_MAX / 2];
};

struct apart {
    struct engine engine; /* first: an engine * is an apart * */
    struct engine_options opt;
    char place[KN_SHA256_HEX];      /* a digest of the worker's; "": none */
    int place_fd;                   /* this worker has it; -1: none */
    char *spec;                     /* owns */
    struct ready ready;             /* what the first child said */
    struct lane_signs known[LANES]; /* how long steps took in the child before */
    pthread_mutex_t lock, control;
    pthread_cond_t left;            /* a call is through */
    struct engine_process *process; /* a reference; NULL: the next call starts one */
    int inside;                     /* calls */
    bool alone;                     /* a call that must be */
    bool lost;                      /* there will be no child any more */
    char lost_why[KN_ERR_TEXT_MAX];
    pid_t undying; /* 0, or a child that SIGKILL did not end */
    bool numbers[MINIBATCHES_MAX];
    int minibatch; /* the last that was begun */
    uint64_t kills, kills_ms,
        kills_told; /* of the kernel's for want of memory: seen, when, put down to a child */
};

struct engine_minibatch {
    struct apart *a;
    const struct engine_work *work;  /* borrowed */
    const struct kiln_callbacks *cb; /* borrowed */
    int first, count;
    struct engine_process *process; /* a reference: that has it; NULL: none */
    uint32_t number;                /* there */
    bool suspect, sole;             /* it may be why its child ended; nothing else can be */
    bool over;                      /* its pictures are out */
};

/* ---- a child's life */

static void process_unref(struct engine_process *p) {
    if (!p || atomic_fetch_sub(&p->refs, 1) != 1) return;
    for (int i = 0; i < LANE_SOCKETS; i++)
        if (p->fd[i] >= 0) close(p->fd[i]);
    if (p->region) munmap(p->region, sizeof *p->region);
    free(p);
}

static struct engine_process *process_ref(struct engine_process *p) {
    atomic_fetch_add(&p->refs, 1);
    return p;
}

/* True when it has ended within the time, *status as waitpid() gives it. */
static bool await_end(pid_t pid, uint32_t ms, int *status) {
    uint64_t end = kn_clock_ms() + ms;
    for (;;) {
        *status = 0;
        pid_t got = waitpid(pid, status, WNOHANG);
        if (got == pid || (got < 0 && errno == ECHILD)) return true;
        if (kn_clock_ms() >= end) return false;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}

static void look_at_memory(struct apart *a) {
    struct kn_machine m;
    uint64_t now = kn_clock_ms();
    if (a->kills_ms && now - a->kills_ms < MEMORY_LOOK_MS) return;
    kn_machine_read("", &m);
    a->kills = m.oom_kills;
    a->kills_ms = now;
}

/* The kernel kills with SIGKILL, and counts: a kill since the last look was this child's. */
static bool died_of_memory(struct apart *a, int status) {
    uint64_t before = a->kills > a->kills_told ? a->kills : a->kills_told;
    a->kills_ms = 0;
    look_at_memory(a);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL || a->kills <= before) return false;
    a->kills_told = before + 1;
    return true;
}

/* The child is of no use any more: ends it and notes why. The first who calls says it. With the lock. */
static void bury(struct apart *a, struct engine_process *p, enum cause cause, int culprit, const char *text) {
    int status = 0;
    if (p->cause) return;
    p->cause = cause;
    p->culprit = culprit;
    p->inside = a->inside;
    p->minibatch = atomic_load(&p->region->now.minibatch);
    p->loading = atomic_load(&p->region->now.loading) != 0;
    bool killed = cause != CAUSE_CRASH;
    int (*kill_it)(pid_t, int) = a->opt.kill ? a->opt.kill : kill;
    kill_it(p->pid, SIGKILL);
    if (!await_end(p->pid, a->opt.kill_ms ? a->opt.kill_ms : KILL_MS, &status)) {
        a->undying = p->pid;
        a->lost = true;
        snprintf(a->lost_why, sizeof a->lost_why,
                 "its process %d does not end, though it was killed: its device is left alone", (int)p->pid);
    } else if (!killed && died_of_memory(a, status)) {
        p->cause = CAUSE_MEMORY;
        snprintf(p->why, sizeof p->why, "the kernel killed it for want of memory");
    }
    if (p->cause == CAUSE_CRASH && WIFSIGNALED(status))
        snprintf(p->why, sizeof p->why, "signal %d", WTERMSIG(status));
    else if (p->cause == CAUSE_CRASH)
        snprintf(p->why, sizeof p->why, "status %d", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    else if (p->cause != CAUSE_MEMORY)
        snprintf(p->why, sizeof p->why, "%s", text);
    if (p->cause == CAUSE_STOP)
        kn_warn("engine_killed pid=%d reason=\"%s\"", (int)p->pid, p->why);
    else
        kn_error("engine_ended pid=%d reason=\"%s\"", (int)p->pid, p->why);
    memcpy(a->known, p->region->lane, sizeof a->known);
    if (a->process != p) return;
    a->process = NULL;
    process_unref(p);
}

static void bury_now(struct apart *a, struct engine_process *p, enum cause cause, int culprit,
                     const char *text) {
    pthread_mutex_lock(&a->lock);
    bury(a, p, cause, culprit, text);
    pthread_mutex_unlock(&a->lock);
}

/* ---- starting one */

static int memory_of(struct engine_process *p, struct kn_err *err) {
    int fd = memfd_create("kiln-engine", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, sizeof *p->region) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)) {
        kn_err_set(err, KN_EIO, "memory to share with the engine: %s", strerror(errno));
        if (fd >= 0) close(fd);
        return -1;
    }
    void *at = mmap(NULL, sizeof *p->region, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) {
        kn_err_set(err, KN_EIO, "memory to share with the engine: %s", strerror(errno));
        close(fd);
        return -1;
    }
    p->region = at;
    return fd;
}

/* Runs the program with its ends of the sockets and the memory. */
static int spawn(const struct apart *a, struct engine_process *p, const int theirs[LANE_SOCKETS], int memory,
                 struct kn_err *err) {
    static char name[] = "kiln-worker", word[] = ENGINE_CHILD_WORD;
    char numbers[80];
    char *const argv[] = {name, word, numbers, NULL};
    posix_spawn_file_actions_t files;
    snprintf(numbers, sizeof numbers, "%d,%d,%d,%d,%d", theirs[0], theirs[1], theirs[2], theirs[3], memory);
    posix_spawn_file_actions_init(&files);
    int rc = posix_spawn_file_actions_adddup2(&files, memory, memory); /* to itself: it stays open */
    for (int i = 0; i < LANE_SOCKETS && !rc; i++)
        rc = posix_spawn_file_actions_adddup2(&files, theirs[i], theirs[i]);
    if (!rc)
        rc = posix_spawn(&p->pid, a->opt.program ? a->opt.program : "/proc/self/exe", &files, NULL, argv,
                         environ);
    posix_spawn_file_actions_destroy(&files);
    return rc ? kn_err_set(err, KN_EIO, "starting the engine's process: %s", strerror(rc)) : 0;
}

static int send_open(const struct apart *a, struct engine_process *p) {
    const struct engine_options *o = &a->opt;
    struct open_head h = {.device_index = o->device_index,
                          .threads = o->threads,
                          .precision = o->precision,
                          .fastest = o->fastest,
                          .memory_bytes_max = o->memory_bytes_max,
                          .model_bytes_max = o->model_bytes_max,
                          .level = kn_log_level_now,
                          .spec_len = (uint32_t)strlen(a->spec),
                          .model_count = (uint32_t)a->engine.model_count};
    snprintf(h.place, sizeof h.place, "%s", a->place);
    struct kn_buf body;
    kn_buf_init(&body, FRAME_BODY_MAX - sizeof h);
    int rc = kn_buf_append(&body, a->spec, h.spec_len);
    for (size_t i = 0; i < a->engine.model_count && !rc; i++) {
        const struct engine_model *m = &a->engine.models[i];
        uint32_t len = m->dir ? (uint32_t)strlen(m->dir) : 0;
        rc = kn_buf_append(&body, &m->info, sizeof m->info);
        if (!rc) rc = kn_buf_append(&body, &len, sizeof len);
        if (!rc && len) rc = kn_buf_append(&body, m->dir, len);
    }
    if (!rc) rc = frame_send(p->fd[LANE_CONTROL], FRAME_OPEN, &h, sizeof h, body.data, body.len);
    kn_buf_fini(&body);
    return rc;
}

/* Waits for a frame of this type. */
static int await_frame(int fd, enum engine_frame_type wanted, int ms, void *out, size_t len) {
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    enum engine_frame_type type;
    struct kn_buf body;
    int n;
    do n = poll(&poll_fd, 1, ms);
    while (n < 0 && errno == EINTR);
    if (n <= 0) return KN_ETIMEOUT;
    kn_buf_init(&body, FRAME_BODY_MAX);
    int rc = frame_receive(fd, &type, &body);
    if (!rc && (type != wanted || body.len != len)) rc = KN_EGONE;
    if (!rc) memcpy(out, body.data, len);
    kn_buf_fini(&body);
    return rc;
}

static int open_process(struct apart *a, struct engine_process *p, struct ready *r, struct kn_err *err) {
    int theirs[LANE_SOCKETS] = {-1, -1, -1, -1}, rc = 0;
    const struct timeval talk = {.tv_sec = TALK_MS / 1000};
    int memory = memory_of(p, err);
    if (memory < 0) return KN_EIO;
    for (int i = 0; i < LANE_SOCKETS && !rc; i++) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
            rc = kn_err_set(err, KN_EIO, "a socket to the engine: %s", strerror(errno));
            break;
        }
        p->fd[i] = pair[0];
        theirs[i] = pair[1];
        setsockopt(pair[0], SOL_SOCKET, SO_SNDTIMEO, &talk, sizeof talk);
        setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &talk, sizeof talk);
    }
    if (!rc) rc = spawn(a, p, theirs, memory, err);
    for (int i = 0; i < LANE_SOCKETS; i++)
        if (theirs[i] >= 0) close(theirs[i]);
    close(memory);
    if (rc) return rc;
    rc = send_open(a, p);
    if (!rc) rc = await_frame(p->fd[LANE_CONTROL], FRAME_READY, START_MS, r, sizeof *r);
    if (rc == 0 && r->code == 0) return 0;
    if (rc == 0) r->text[sizeof r->text - 1] = '\0';
    bury(a, p,
         rc == KN_ETIMEOUT ? CAUSE_HANG
         : rc              ? CAUSE_CRASH
                           : CAUSE_DEVICE,
         LANE_CONTROL, "it does not open");
    if (rc) return kn_err_set(err, KN_EDEVICE, "the engine's process ended as it began: %s", p->why);
    return kn_err_set(err, r->code, "%s", r->text);
}

/* With the lock. What it says of itself must be what the first one said. */
static int start(struct apart *a, struct kn_err *err) {
    struct engine_process *p = calloc(1, sizeof *p);
    struct ready r;
    if (!p) return kn_err_set(err, KN_ENOMEM, "out of memory");
    atomic_init(&p->refs, 1);
    for (int i = 0; i < LANE_SOCKETS; i++) p->fd[i] = -1;
    uint64_t begun = kn_clock_ms();
    a->kills_ms = 0;
    look_at_memory(a);
    int rc = open_process(a, p, &r, err);
    if (rc == 0 && a->ready.backend[0] && memcmp(&a->ready, &r, sizeof r) != 0) {
        bury(a, p, CAUSE_DEVICE, LANE_CONTROL, "it is another engine than before");
        rc = kn_err_set(err, KN_EDEVICE, "its engine was %.48s on %.128s, and is %.48s on %.128s now",
                        a->ready.backend, a->ready.device, r.backend, r.device);
    }
    if (rc) {
        process_unref(p);
        return rc;
    }
    a->ready = r;
    for (int i = 0; i < LANES; i++) { /* of the same kind of work; how far this one is, it says itself */
        memcpy(&p->region->lane[i], &a->known[i], sizeof a->known[i]);
        atomic_store(&p->region->lane[i].same, 0);
        atomic_store(&p->region->lane[i].abort, false);
    }
    for (unsigned i = 0; i < SLOTS; i++) p->kept[i] = (struct kept_pixels){p, &p->region->slots[i]};
    a->process = p;
    kn_info("engine_started pid=%d ms=%llu", (int)p->pid, (unsigned long long)(kn_clock_ms() - begun));
    return 0;
}

/* The child, with a reference; started where there is none. KN_EDEVICE: there is none any more. */
static int current(struct apart *a, struct engine_process **out, struct kn_err *err) {
    pthread_mutex_lock(&a->lock);
    if (!a->lost && !a->process && start(a, err) != 0) {
        a->lost = true;
        if (!a->lost_why[0]) snprintf(a->lost_why, sizeof a->lost_why, "%s", err->text);
    }
    look_at_memory(a);
    int rc = a->lost ? kn_err_set(err, KN_EDEVICE, "%s", a->lost_why) : 0;
    if (!rc) *out = process_ref(a->process);
    pthread_mutex_unlock(&a->lock);
    return rc;
}

/* ---- a call */

/* A request to a child, from its sending to its answer. */
struct engine_call {
    struct apart *a;
    struct engine_process *p;
    enum engine_lane lane;
    const struct engine_work *work;
    const struct kiln_callbacks *cb; /* NULL: it brings no pictures and no steps */
    int first;                       /* of the work's tasks */
    int base, count;                 /* what the callbacks add to an index; tasks that were asked for */
    int done;                        /* pictures that came */
    bool stopping;
    uint64_t looked_us, quiet_us, stopping_us;
    unsigned signs, told; /* the child's, as seen last; as told last */
};

struct child_picture {       /* that a callback is given */
    struct kiln_image image; /* first: what the callback gets is this */
    struct kept_pixels *kept;
    bool is_kept;
};

/* The callback keeps it: the slot is not the child's again before it lets go. */
static void *keep(const struct kiln_image *image) {
    struct child_picture *x = (struct child_picture *)(uintptr_t)image;
    x->is_kept = true;
    process_ref(x->kept->process);
    return x->kept;
}

static void let_go(void *kept) {
    struct kept_pixels *k = kept;
    atomic_store(&k->slot->state, SLOT_FREE);
    process_unref(k->process);
}

static void stop(struct engine_call *c) {
    c->stopping = true;
    atomic_store(&c->p->region->lane[c->lane].abort, true);
}

/* Hands on what the child has finished. False: what it says of a picture cannot be. */
static bool take_pictures(struct engine_call *c) {
    struct region *r = c->p->region;
    for (;;) {
        unsigned at = c->p->taken % SLOTS;
        struct pixel_slot *slot = &r->slots[at];
        if (atomic_load(&slot->state) != SLOT_FULL) return true;
        int index = slot->index;
        if (index != c->done || index >= c->count) return false;
        const struct kn_task *task = &c->work->tasks[c->first + index];
        uint64_t bytes = slot->status ? 0 : (uint64_t)task->width * task->height * 3, from = slot->at;
        if (slot->bytes != bytes || from > RING_BYTES || bytes > RING_BYTES - from) return false;
        struct child_picture x = {.image = {.task = task,
                                            .index = c->base + index,
                                            .status = slot->status,
                                            .step = slot->step,
                                            .rgb = bytes ? r->pixels + from : NULL,
                                            .render_ms = slot->render_ms,
                                            .flat = slot->flat},
                                  .kept = &c->p->kept[at]};
        atomic_store(&slot->state, SLOT_TAKEN);
        c->p->taken++;
        c->done++;
        if (!c->stopping && c->cb->image(c->cb->ctx, &x.image)) stop(c);
        if (!x.is_kept) atomic_store(&slot->state, SLOT_FREE);
    }
}

static void take_steps(struct engine_call *c) {
    struct lane_signs *l = &c->p->region->lane[c->lane];
    unsigned step = atomic_load(&l->step), signs = atomic_load(&l->signs);
    if (!c->cb || !c->cb->step || c->stopping || signs == c->told) return;
    c->told = signs;
    if (step && c->cb->step(c->cb->ctx, (int)step, (int)atomic_load(&l->steps))) stop(c);
}

/* For whoever asks the engine how it is. */
static void take_now(struct engine_call *c) {
    const struct engine_now *from = &c->p->region->now;
    struct engine_now *to = c->a->engine.now;
    atomic_store(&to->loading_bytes, atomic_load(&from->loading_bytes));
    atomic_store(&to->loading, atomic_load(&from->loading));
    atomic_store(&to->minibatch, atomic_load(&from->minibatch));
}

static int by_size(const void *x, const void *y) {
    uint32_t a = *(const uint32_t *)x, b = *(const uint32_t *)y;
    return a < b ? -1 : a > b;
}

/* How long the child may give no sign of life. */
static uint64_t patience_us(const struct engine_call *c) {
    const struct region *r = c->p->region;
    const struct lane_signs *l = &r->lane[c->lane];
    uint32_t gap_us[GAPS];
    uint64_t least = (c->a->opt.hang_ms ? c->a->opt.hang_ms : HANG_MS) * 1000ull;
    unsigned count = atomic_load(&l->gaps);
    if (count > GAPS) count = GAPS;
    if (c->quiet_us < least) return least;
    if (atomic_load(&r->now.loading) || atomic_load(&l->same) < SIGNS_MIN || count < SIGNS_MIN)
        return UNKNOWN_MS * 1000ull;
    for (unsigned i = 0; i < count; i++) gap_us[i] = atomic_load(&l->gap_us[i]);
    qsort(gap_us, count, sizeof gap_us[0], by_size);
    uint64_t most = (uint64_t)gap_us[(count * 99 + 99) / 100 - 1] * HANG_TIMES;
    return most > least ? most : least;
}

/* Ends a child that hangs. Time counts as far as this thread was awake: a machine that slept, or has no time for
 * anybody, is no hang. */
static void look_for_hang(struct engine_call *c) {
    uint64_t now = kn_clock_us(), passed = now - c->looked_us,
             least = (c->a->opt.hang_ms ? c->a->opt.hang_ms : HANG_MS) * 1000ull;
    unsigned signs = atomic_load(&c->p->region->lane[c->lane].signs);
    char text[80];
    c->looked_us = now;
    if (passed > 2 * TICK_MS * 1000) passed = 2 * TICK_MS * 1000;
    c->quiet_us = signs == c->signs ? c->quiet_us + passed : 0;
    c->signs = signs;
    if (c->stopping && (c->stopping_us += passed) >= least) {
        bury_now(c->a, c->p, CAUSE_STOP, (int)c->lane, "it does not stop");
    } else if (c->quiet_us >= least && c->quiet_us >= patience_us(c)) {
        snprintf(text, sizeof text, "no progress for %.1f s", (double)c->quiet_us / 1e6);
        bury_now(c->a, c->p, CAUSE_HANG, (int)c->lane, text);
    }
}

static bool is_dead(struct apart *a, const struct engine_process *p) {
    pthread_mutex_lock(&a->lock);
    bool dead = p->cause != CAUSE_NONE;
    pthread_mutex_unlock(&a->lock);
    return dead;
}

/* Waits for the answer. KN_EGONE: the child is dead. */
static int await_answer(struct engine_call *c, struct answer *out) {
    struct pollfd fd = {.fd = c->p->fd[c->lane], .events = POLLIN};
    struct kn_buf body;
    enum engine_frame_type type;
    kn_buf_init(&body, FRAME_BODY_MAX);
    int rc = KN_EAGAIN;
    c->looked_us = kn_clock_us();
    c->signs = c->told = atomic_load(&c->p->region->lane[c->lane].signs);
    while (rc == KN_EAGAIN) {
        if (c->cb && c->cb->image) {
            atomic_store(&c->p->region->wanted, true);
            if (!take_pictures(c))
                bury_now(c->a, c->p, CAUSE_DEVICE, (int)c->lane, "it brings pictures that nobody asked for");
        }
        take_steps(c);
        take_now(c);
        if (!c->stopping && c->work->stop && atomic_load(c->work->stop)) stop(c);
        bool quiet = poll(&fd, 1, TICK_MS) == 0;
        look_for_hang(c);
        if (quiet) {
            if (is_dead(c->a, c->p)) rc = KN_EGONE; /* with one that does not end, no socket does */
        } else if (frame_receive(fd.fd, &type, &body)) {
            rc = KN_EGONE;
        } else if (type == FRAME_ANSWER && body.len == sizeof *out) {
            rc = 0;
        }
    }
    if (rc == 0) memcpy(out, body.data, sizeof *out);
    kn_buf_fini(&body);
    if (rc) bury_now(c->a, c->p, CAUSE_CRASH, -1, "");
    if (c->cb && c->cb->image) (void)take_pictures(c); /* those of a dead child too */
    take_now(c);
    out->text[sizeof out->text - 1] = '\0';
    return rc;
}

/* The tasks as they travel: a grant's. */
static int pack_tasks(const struct engine_work *w, int first, int count, struct kn_buf *out,
                      struct kn_err *err) {
    uint32_t index[KN_SHARD_TASKS_MAX];
    struct kn_msg m = {.type = KN_MSG_SHARD_GRANT};
    assert(count > 0 && count <= KN_SHARD_TASKS_MAX);
    for (int i = 0; i < count; i++) index[i] = (uint32_t)i;
    m.u.shard_grant = (struct kn_shard_grant){.shard = 1,
                                              .attempt = 1,
                                              .index = index,
                                              .tasks = (struct kn_task *)(uintptr_t)(w->tasks + first),
                                              .count = (size_t)count};
    return kn_msg_encode(&m, out, err);
}

/* Asks, and waits. 0: *out is the answer, which says of the work what became of it. KN_EGONE: the child is dead. Others:
 * nothing could be asked. */
static int ask(struct engine_call *c, enum engine_frame_type type, uint32_t number, struct answer *out,
               struct kn_err *err) {
    struct work_head h = {.model = engine_place(&c->a->engine, c->work->model) - 1,
                          .attempt = c->work->attempt,
                          .minibatch = number,
                          .probe = c->work->probe};
    struct kn_buf tasks;
    int rc = 0;
    kn_buf_init(&tasks, KN_FRAME_BYTES_MAX);
    if (type == FRAME_RENDER || type == FRAME_BEGIN)
        rc = pack_tasks(c->work, c->first, c->count, &tasks, err);
    if (!rc) {
        atomic_store(&c->p->region->lane[c->lane].abort, false);
        atomic_store(&c->p->region->lane[c->lane].step, 0);
        rc = frame_send(c->p->fd[c->lane], type, &h, sizeof h, tasks.data, tasks.len);
        if (rc) bury_now(c->a, c->p, CAUSE_CRASH, -1, "");
        if (!rc) rc = await_answer(c, out);
        if (!rc && out->code == KN_EDEVICE) {
            bury_now(c->a, c->p, CAUSE_DEVICE, -1,
                     out->text); /* such an error sticks: whose it was nobody knows */
            rc = KN_EGONE;
        }
    }
    kn_buf_fini(&tasks);
    return rc;
}

/* ---- who may be inside */

static void enter(struct apart *a, bool alone) {
    pthread_mutex_lock(&a->lock);
    while (a->alone || (alone && a->inside > 0)) pthread_cond_wait(&a->left, &a->lock);
    a->inside++;
    a->alone = alone;
    pthread_mutex_unlock(&a->lock);
}

static void leave(struct apart *a) {
    pthread_mutex_lock(&a->lock);
    a->inside--;
    a->alone = false;
    pthread_cond_broadcast(&a->left);
    pthread_mutex_unlock(&a->lock);
}

/* ---- what a death means */

/* Of a call that was inside when its child ended. */
enum death_verdict {
    VERDICT_INNOCENT, /* another one's fault: it is done again as it was */
    VERDICT_SUSPECT,  /* it may be the cause */
    VERDICT_SOLE,     /* it is: nothing else was inside */
    VERDICT_STOPPED,  /* it did not stop when it was told to */
    VERDICT_MEMORY,   /* the kernel killed it for want of memory */
    VERDICT_MODEL,    /* a model was being loaded: no task had a part in it */
};

static enum death_verdict verdict_of(struct apart *a, const struct engine_process *p, enum engine_lane lane) {
    pthread_mutex_lock(&a->lock);
    bool mine = p->culprit == (int)lane, sole = p->inside <= 1;
    enum death_verdict v = p->culprit >= 0 && !mine ? VERDICT_INNOCENT
                           : mine || sole           ? VERDICT_SOLE
                                                    : VERDICT_SUSPECT;
    if (p->cause == CAUSE_STOP && mine)
        v = VERDICT_STOPPED;
    else if (p->loading && v == VERDICT_SOLE)
        v = VERDICT_MODEL;
    else if (p->cause == CAUSE_MEMORY)
        v = VERDICT_MEMORY;
    pthread_mutex_unlock(&a->lock);
    return v;
}

static int code_of(const struct engine_process *p) {
    return p->cause == CAUSE_HANG ? KN_ETIMEOUT : p->cause == CAUSE_DEVICE ? KN_EDEVICE : KN_EGONE;
}

/* Tells of an image that was alone. */
static void tell_failed(struct apart *a, const struct engine_process *p, const struct engine_work *w,
                        const struct kiln_callbacks *cb, int index) {
    char reason[KN_REASON_MAX + 1];
    pthread_mutex_lock(&a->lock);
    int code = code_of(p);
    snprintf(reason, sizeof reason,
             code == KN_EGONE      ? "the engine died while it rendered this image: %s"
             : code == KN_ETIMEOUT ? "%s while the engine rendered this image"
                                   : "the device failed while it rendered this image: %s",
             p->why);
    pthread_mutex_unlock(&a->lock);
    w->failed(cb->ctx, index, code, reason);
}

/* ---- rendering in one call */

/* What a call to render() has before it. */
struct child_rendering {
    struct apart *a;
    const struct engine_work *work;
    const struct kiln_callbacks *cb;
    int first, count;  /* of the work's tasks */
    int base;          /* what the callbacks add to an index */
    int at, single_to; /* done; up to there one at a time */
    int memory_tries;  /* of the one at `at` */
};

/* The child ended at task `at` of n that it was asked for. 0: go on. */
static int rendering_died(struct child_rendering *r, const struct engine_process *p, int n,
                          struct kn_err *err) {
    int together = (int)p->minibatch;
    if (together < 1) together = 1;
    if (together > n) together = n;
    switch (verdict_of(r->a, p, LANE_LOOP)) {
    case VERDICT_STOPPED:
        return kn_err_set(err, KN_ECANCELED, "stopped, by ending its process");
    case VERDICT_MODEL:
        return kn_err_set(err, KN_EMODEL, "the engine ended while it loaded %s: %s", r->work->model->name,
                          p->why);
    case VERDICT_MEMORY:
        if (n == 1 && ++r->memory_tries < MEMORY_TRIES)
            return 0; /* it may have been another program that took it */
        return kn_err_set(err, KN_EOOM,
                          "out of memory: the kernel killed the engine while it rendered %d at once",
                          together);
    default:
        break;
    }
    if (n == 0) return 0; /* all its pictures are there */
    if (together == 1) {
        tell_failed(r->a, p, r->work, r->cb, r->base + r->at);
        r->at++;
        r->memory_tries = 0;
    } else {
        r->single_to = r->at + together;
    }
    return 0;
}

/* Renders what is left of it, with as many children as it takes. To be inside alone, or with an engine that has no
 * stages. */
static int render_all(struct child_rendering *r, struct kn_err *err) {
    int rc = 0;
    while (r->at < r->count && !rc) {
        struct engine_call c = {.a = r->a,
                                .lane = LANE_LOOP,
                                .work = r->work,
                                .cb = r->cb,
                                .first = r->first + r->at,
                                .base = r->base + r->at,
                                .count = r->at < r->single_to ? 1 : r->count - r->at};
        struct answer answer = {0};
        if (r->work->stop && atomic_load(r->work->stop)) return kn_err_set(err, KN_ECANCELED, "stopped");
        rc = current(r->a, &c.p, err);
        if (rc) return rc;
        rc = ask(&c, FRAME_RENDER, 0, &answer, err);
        if (c.done) r->memory_tries = 0;
        r->at += c.done;
        if (rc == KN_EGONE) {
            rc = rendering_died(r, c.p, c.count - c.done, err);
            if (!rc && r->cb->step)
                (void)r->cb->step(r->cb->ctx, 0, (int)r->work->tasks->steps); /* it begins anew */
        } else if (!rc && answer.code) {
            rc = kn_err_set(err, answer.code, "%s", answer.text);
        } else if (!rc && c.done < c.count) {
            rc = kn_err_set(err, KN_EINTERNAL, "the engine brought %d pictures of %d", c.done, c.count);
        }
        process_unref(c.p);
    }
    return rc;
}

static int child_render(struct engine *e, const struct engine_work *w, const struct kiln_callbacks *cb,
                        struct kn_err *err) {
    struct child_rendering r = {.a = (struct apart *)e, .work = w, .cb = cb, .count = w->count};
    enter(r.a, r.a->ready.staged);
    int rc = render_all(&r, err);
    leave(r.a);
    return rc;
}

/* ---- rendering in stages */

/* A minibatch whose child is dead, from its done-th image on. */
static int render_again(struct engine_minibatch *b, int done, struct kn_err *err) {
    struct child_rendering r = {.a = b->a,
                                .work = b->work,
                                .cb = b->cb,
                                .first = b->first,
                                .count = b->count,
                                .at = done,
                                .single_to = b->suspect ? b->count : 0};
    b->over = true;
    if (b->sole && b->count - done == 1) { /* there is no need to try it again */
        tell_failed(b->a, b->process, b->work, b->cb, done);
        return 0;
    }
    enter(b->a, true);
    int rc = render_all(&r, err);
    leave(b->a);
    return rc;
}

/* A call of this minibatch found its child dead. 0: it is to be rendered again. */
static int minibatch_died(struct engine_minibatch *b, const struct engine_process *p, enum engine_lane lane,
                          int left, struct kn_err *err) {
    enum death_verdict v = verdict_of(b->a, p, lane);
    b->sole = v == VERDICT_SOLE;
    b->suspect = b->sole || v == VERDICT_SUSPECT;
    if (v == VERDICT_STOPPED) return kn_err_set(err, KN_ECANCELED, "stopped, by ending its process");
    if (v == VERDICT_MODEL)
        return kn_err_set(err, KN_EMODEL, "the engine ended while it loaded %s: %s", b->work->model->name,
                          p->why);
    if (v == VERDICT_MEMORY && left > 1)
        return kn_err_set(err, KN_EOOM,
                          "out of memory: the kernel killed the engine while it rendered %d at once", left);
    return 0;
}

static int number_take(struct apart *a, uint32_t *out) {
    uint32_t n = 0;
    pthread_mutex_lock(&a->lock);
    while (n < MINIBATCHES_MAX && a->numbers[n]) n++;
    if (n < MINIBATCHES_MAX) a->numbers[n] = true;
    pthread_mutex_unlock(&a->lock);
    *out = n;
    return n < MINIBATCHES_MAX ? 0 : KN_ELIMIT;
}

static void number_give(struct apart *a, uint32_t number) {
    pthread_mutex_lock(&a->lock);
    a->numbers[number] = false;
    pthread_mutex_unlock(&a->lock);
}

static void minibatch_free(struct engine_minibatch *b) {
    process_unref(b->process);
    number_give(b->a, b->number);
    free(b);
}

static int child_begin(struct engine *e, const struct engine_work *w, int first,
                       const struct kiln_callbacks *cb, struct engine_minibatch **out, int *count,
                       struct kn_err *err) {
    struct apart *a = (struct apart *)e;
    struct engine_minibatch *b = calloc(1, sizeof *b);
    struct answer answer = {0};
    struct engine_call c = {.a = a, .lane = LANE_TEXTS, .work = w, .first = first, .count = w->count - first};
    if (!b) return kn_err_set(err, KN_ENOMEM, "out of memory");
    *b = (struct engine_minibatch){.a = a, .work = w, .cb = cb, .first = first};
    if (number_take(a, &b->number)) {
        free(b);
        return kn_err_set(err, KN_ELIMIT, "more than %d minibatches", MINIBATCHES_MAX);
    }
    enter(a, false);
    int rc = current(a, &b->process, err);
    c.p = b->process;
    if (!rc) rc = ask(&c, FRAME_BEGIN, b->number, &answer, err);
    leave(a);
    if (rc == KN_EGONE) { /* how many would go together it did not say */
        b->count = a->minibatch ? a->minibatch : MINIBATCH_GUESS;
        if (b->count > c.count) b->count = c.count;
        rc = minibatch_died(b, b->process, LANE_TEXTS, b->count, err);
    } else if (!rc && answer.code) {
        rc = kn_err_set(err, answer.code, "%s", answer.text);
    } else if (!rc && (answer.count < 1 || answer.count > c.count)) {
        rc = kn_err_set(err, KN_EINTERNAL, "a minibatch of %d", answer.count);
    } else if (!rc) {
        b->count = a->minibatch = answer.count;
    }
    if (rc) {
        minibatch_free(b);
        return rc;
    }
    *out = b;
    *count = b->count;
    return 0;
}

/* A stage of a minibatch that was begun; where its child is dead, all that is left of it. */
static int run_stage(struct engine_minibatch *b, enum engine_frame_type type, enum engine_lane lane,
                     const struct kiln_callbacks *cb, struct kn_err *err) {
    struct answer answer = {0};
    struct engine_call c = {.a = b->a,
                            .p = b->process,
                            .lane = lane,
                            .work = b->work,
                            .cb = cb,
                            .first = b->first,
                            .count = b->count};
    if (b->over) return 0;
    if (is_dead(b->a, b->process)) return render_again(b, 0, err);
    enter(b->a, false);
    int rc = ask(&c, type, b->number, &answer, err);
    leave(b->a);
    if (rc == 0) return answer.code ? kn_err_set(err, answer.code, "%s", answer.text) : 0;
    if (rc != KN_EGONE) return rc;
    rc = minibatch_died(b, b->process, lane, b->count - c.done, err);
    if (!rc && cb && b->cb->step) (void)b->cb->step(b->cb->ctx, 0, (int)b->work->tasks->steps);
    return rc ? rc : render_again(b, c.done, err);
}

static int child_denoise(struct engine_minibatch *b, struct kn_err *err) {
    const struct kiln_callbacks steps = {.ctx = b->cb->ctx, .step = b->cb->step};
    return run_stage(b, FRAME_DENOISE, LANE_LOOP, &steps, err);
}

static int child_finish(struct engine_minibatch *b, struct kn_err *err) {
    const struct kiln_callbacks pictures = {.ctx = b->cb->ctx, .image = b->cb->image};
    return run_stage(b, FRAME_FINISH, LANE_PICTURES, &pictures, err);
}

/* The child's part of it ends before another is begun: its memory is wanted. */
static void child_drop(struct engine_minibatch *b) {
    struct apart *a = b->a;
    struct work_head h = {.minibatch = b->number};
    struct answer answer;
    pthread_mutex_lock(&a->control);
    if (!is_dead(a, b->process)) {
        int fd = b->process->fd[LANE_CONTROL], rc = frame_send(fd, FRAME_DROP, &h, sizeof h, NULL, 0);
        if (!rc) rc = await_frame(fd, FRAME_ANSWER, TALK_MS, &answer, sizeof answer);
        if (rc)
            bury_now(a, b->process, rc == KN_ETIMEOUT ? CAUSE_HANG : CAUSE_CRASH, -1, "it lets nothing go");
    }
    pthread_mutex_unlock(&a->control);
    minibatch_free(b);
}

/* ---- life */

static void child_close(struct engine *e) {
    struct apart *a = (struct apart *)e;
    struct engine_process *p = a->process;
    int status;
    if (p) {
        bool asked = frame_send(p->fd[LANE_CONTROL], FRAME_CLOSE, NULL, 0, NULL, 0) == 0;
        for (int i = 0; i < LANES; i++) shutdown(p->fd[i], SHUT_WR); /* its threads end */
        if (!asked || !await_end(p->pid, CLOSE_MS, &status)) {
            pthread_mutex_lock(&a->lock);
            bury(a, p, CAUSE_STOP, -1, "it does not close");
            pthread_mutex_unlock(&a->lock);
        } else {
            process_unref(p);
        }
    }
    if (a->place_fd >= 0) close(a->place_fd);
    pthread_cond_destroy(&a->left);
    pthread_mutex_destroy(&a->control);
    pthread_mutex_destroy(&a->lock);
    free(a->spec);
    free(a);
}

void engine_linger(struct engine *e) {
    struct apart *a = (struct apart *)e;
    int status;
    if (e->ops->close != child_close || !a->undying) return;
    kn_error(
        "engine_lingers pid=%d: it was killed and does not end; nothing else is started on its device before",
        (int)a->undying);
    signal(SIGTERM, SIG_DFL);
    signal(SIGINT, SIG_DFL);
    signal(SIGHUP, SIG_DFL);
    while (waitpid(a->undying, &status, 0) < 0 && errno == EINTR) continue;
}

int engine_open_child(const struct engine_options *opt, struct engine_model *models, size_t model_count,
                      struct engine **out, struct kn_err *err) {
    static const struct engine_ops whole = {.render = child_render,
                                            .close = child_close,
                                            .keep = keep,
                                            .let_go = let_go},
                                   staged = {.render = child_render,
                                             .close = child_close,
                                             .begin = child_begin,
                                             .denoise = child_denoise,
                                             .finish = child_finish,
                                             .drop = child_drop,
                                             .keep = keep,
                                             .let_go = let_go};
    struct apart *a = calloc(1, sizeof *a);
    *out = NULL;
    if (!a || !(a->spec = strdup(opt->spec))) {
        free(a);
        return kn_err_set(err, KN_ENOMEM, "out of memory");
    }
    a->opt = *opt;
    a->opt.spec = a->opt.place = NULL; /* they may not last */
    a->place_fd = -1;
    if (opt->place) {
        kn_digest place;
        kn_sha256(opt->place, strlen(opt->place), place);
        kn_hex(place, sizeof place, a->place);
        a->place_fd = place_bind("worker", a->place);
        /* Another worker that lives calls itself the same: the farm settles that, and its child is not waited for. */
        if (a->place_fd < 0) a->place[0] = '\0';
    }
    a->engine.models = models;
    a->engine.model_count = model_count;
    a->engine.now = &a->engine.own;
    pthread_mutex_init(&a->lock, NULL);
    pthread_mutex_init(&a->control, NULL);
    pthread_cond_init(&a->left, NULL);
    pthread_mutex_lock(&a->lock);
    int rc = start(a, err);
    pthread_mutex_unlock(&a->lock);
    if (rc) {
        child_close(&a->engine);
        return rc;
    }
    a->engine.ops = a->ready.staged ? &staged : &whole;
    a->engine.backend = a->ready.backend;
    a->engine.device = a->ready.device;
    a->engine.version = a->ready.version;
    a->engine.batch_max = a->ready.batch_max;
    *out = &a->engine;
    return 0;
}
