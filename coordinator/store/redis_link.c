/* See redis_link.h.
 *
 * The life of a connection: CONNECTING → GREETING → UP, and from each of them back to PAUSING when it breaks,
 * is too slow (a deadline on each state and on the oldest command), or is told "not now". hiredis frees its
 * context by itself on errors; its `cleanup` hook is the one place where a connection ends here. */
#include "coordinator/store/redis_link.h"

#include <assert.h>
#include <errno.h>
#include <hiredis/async.h>
#include <hiredis/hiredis.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/store/redis_tls.h"

#define CONNECT_MS 5000 /* for connecting and greeting */
#define ANSWER_MS 30000 /* for the oldest command: a disk may be slow to sync */
#define PAUSE_MIN_MS 50
#define PAUSE_MAX_MS 2000
#define WATCH_MS 500
#define PING_MS 1000 /* without a word for so long it is asked something, to see that it answers */
#define SENT_BYTES_MAX (16u << 20) /* on their way at once */

struct command {
    struct command *next;
    struct redis_link *link;
    redis_link_reply fn;
    void *ctx;
    uint64_t sent_ms;
    size_t len;
    bool front;   /* it goes before all that are not */
    char bytes[]; /* a 0 behind them: hiredis looks for signs in them as in a text */
};

struct direct {
    struct redis_link *link;
    redis_link_reply fn;
    void *ctx;
};

enum link_phase { PAUSING, CONNECTING, GREETING, UP };

/* hiredis' context and its poll handle: one a connection. */
struct wire_poll {
    uv_poll_t poll;
    struct redis_link *link;
    redisAsyncContext *ac;
    int events;
};

struct redis_link {
    struct redis_link_options opt;
    uv_loop_t *loop;
    uv_timer_t pause, watch;
    int handles; /* timers not closed yet */
    bool destroyed;
    enum link_phase phase;
    uint64_t phase_ms;
    redisAsyncContext *ac; /* NULL while pausing */
    int failures;          /* in a row */
    uint64_t silent_since; /* since when an answer is awaited; 0: none is */
    uint64_t heard_ms;
    size_t directs; /* not answered */
    char why[400];  /* the last error */
    struct command *first, *last, *unsent;
    bool front_on;         /* redis_link_front() */
    struct command *front; /* the last one that was queued since; NULL: none */
    size_t count, bytes, sent_bytes;
};

static void connect_now(struct redis_link *l);

/* Remembers why the connection is of no use, for whoever asks why nothing is kept. */
static void note_why(struct redis_link *l, const char *why) {
    snprintf(l->why, sizeof l->why, "%s", why);
    if (!l->silent_since) l->silent_since = kn_clock_ms();
}

static void asked(struct redis_link *l) {
    if (!l->silent_since) l->silent_since = kn_clock_ms();
}

/* Something was answered: what is still open is awaited from now on. An answer to a question does not say that
 * writes are taken, so it counts only while none waits. */
static void heard(struct redis_link *l, bool write) {
    l->heard_ms = kn_clock_ms();
    if (l->phase != UP || (l->first && !write)) return;
    l->why[0] = '\0';
    l->silent_since = l->first != l->unsent || l->directs > 0 ? l->heard_ms : 0;
}

static void enter(struct redis_link *l, enum link_phase p) {
    l->phase = p;
    l->phase_ms = kn_clock_ms();
}

/* ---- the adapter */

static void update_poll(struct wire_poll *w);

static void on_poll(uv_poll_t *h, int status, int events) {
    struct wire_poll *w = h->data;
    if (status < 0) { /* an error on the socket: libuv has stopped watching it */
        int why = 0;
        socklen_t len = sizeof why;
        getsockopt(w->ac->c.fd, SOL_SOCKET, SO_ERROR, &why, &len);
        redis_link_drop(w->link, why ? strerror(why) : uv_strerror(status));
        return;
    }
    struct redis_link *l = w->link;
    redisAsyncContext *ac = w->ac;
    if (events & UV_READABLE) redisAsyncHandleRead(ac);
    if ((events & UV_WRITABLE) && l->ac == ac) redisAsyncHandleWrite(ac);
}

static void update_poll(struct wire_poll *w) {
    if (w->events)
        uv_poll_start(&w->poll, w->events, on_poll);
    else
        uv_poll_stop(&w->poll);
}

static void want(void *data, int add, int del) {
    struct wire_poll *w = data;
    int events = (w->events | add) & ~del;
    if (events == w->events) return;
    w->events = events;
    update_poll(w);
}
static void add_read(void *data) {
    want(data, UV_READABLE, 0);
}
static void del_read(void *data) {
    want(data, 0, UV_READABLE);
}
static void add_write(void *data) {
    want(data, UV_WRITABLE, 0);
}
static void del_write(void *data) {
    want(data, 0, UV_WRITABLE);
}

static void free_poll(uv_handle_t *h) {
    free(h->data);
}

static void on_pause_over(uv_timer_t *t) {
    connect_now(t->data);
}

static void pause_then_connect(struct redis_link *l) {
    enter(l, PAUSING);
    uint64_t ms = PAUSE_MIN_MS;
    for (int i = 0; i < l->failures && ms < PAUSE_MAX_MS; i++) ms *= 2;
    if (ms > PAUSE_MAX_MS) ms = PAUSE_MAX_MS;
    uint32_t r = 0;
    if (getrandom(&r, sizeof r, 0) != (ssize_t)sizeof r) r = 0;
    l->failures++;
    uv_timer_start(&l->pause, on_pause_over, ms / 2 + r % (ms / 2 + 1), 0);
}

/* Nothing is on its way: those of the front go first, each kind in its order. One that could not be carried out
 * (a write at the limit of memory) does not keep them back. */
static void front_first(struct redis_link *l) {
    struct command *all = l->first, *rest = NULL, **front_end = &l->first, **rest_end = &rest;
    for (l->last = NULL; all; all = all->next) {
        struct command ***end = all->front ? &front_end : &rest_end;
        **end = all;
        *end = &all->next;
        if (!all->front) l->last = all;
    }
    *rest_end = NULL;
    *front_end = rest;
    for (struct command *c = l->first; c && !l->last; c = c->next)
        if (!c->next) l->last = c;
}

/* Called once by hiredis for each context, before the descriptor is closed. */
static void cleanup(void *data) {
    struct wire_poll *w = data;
    struct redis_link *l = w->link;
    uv_close((uv_handle_t *)&w->poll, free_poll);
    l->ac = NULL;
    front_first(l);
    l->unsent = l->first; /* everything not answered is sent again */
    asked(l);
    l->sent_bytes = 0;
    if (!l->destroyed) pause_then_connect(l);
}

static void on_begun(void *ctx, const redisReply *r) {
    struct redis_link *l = ctx;
    if (r->type != REDIS_REPLY_ERROR) return;
    kn_error("redis_refused error=\"%s\"", r->str);
    redis_link_drop(l, r->str);
}

/* The user and the data base of a new connection. What is sent behind it is refused as well where this is. */
static void begin_as(struct redis_link *l) {
    const struct kn_redis_address *a = l->opt.address;
    const char *v[3] = {"AUTH"};
    size_t len[3];
    char db[16];
    int n = 1;
    if (a->password[0]) {
        if (a->user[0]) v[n++] = a->user;
        v[n++] = a->password;
        for (int i = 0; i < n; i++) len[i] = strlen(v[i]);
        redis_link_direct(l, n, v, len, on_begun, l);
    }
    if (a->db == 0) return;
    snprintf(db, sizeof db, "%d", a->db);
    v[0] = "SELECT";
    v[1] = db;
    for (int i = 0; i < 2; i++) len[i] = strlen(v[i]);
    redis_link_direct(l, 2, v, len, on_begun, l);
}

static void on_connected(const redisAsyncContext *ac, int status) {
    struct redis_link *l = ac->data;
    if (status != REDIS_OK) {
        kn_warn("redis_connect_failed error=\"%s\"", ac->errstr ? ac->errstr : "");
        note_why(l, ac->errstr ? ac->errstr : "cannot connect");
        return; /* hiredis frees the context, and cleanup() goes on */
    }
    if (l->phase != CONNECTING) return;
    enter(l, GREETING);
    begin_as(l);
    l->opt.greet(l->opt.ctx);
}

static void on_disconnected(const redisAsyncContext *ac, int status) {
    struct redis_link *l = ac->data;
    char why[300];
    if (status == REDIS_OK) return;
    kn_warn("redis_lost error=\"%s\"", ac->errstr ? ac->errstr : "");
    if (l->opt.address->tls && redis_tls_why(why, sizeof why)) note_why(l, why);
}

static void connect_now(struct redis_link *l) {
    const struct kn_redis_address *a = l->opt.address;
    struct redis_tls_door door;
    struct kn_err err = {0};
    enter(l, CONNECTING);
    if (a->tls && redis_tls_open(&door, &err)) {
        kn_warn("redis_connect_failed error=\"%s\"", err.text);
        note_why(l, "no socket for TLS");
        pause_then_connect(l);
        return;
    }
    redisAsyncContext *ac = a->tls    ? redisAsyncConnectUnix(door.path)
                            : a->port ? redisAsyncConnect(a->host, a->port)
                                      : redisAsyncConnectUnix(a->host);
    if (a->tls) redis_tls_close(&door, a);
    struct wire_poll *w = calloc(1, sizeof *w);
    int rc = 0;
    if (!ac || !w || ac->err || (rc = uv_poll_init(l->loop, &w->poll, ac->c.fd)) != 0) {
        kn_warn("redis_connect_failed error=\"%s\"", rc                 ? uv_strerror(rc)
                                                     : ac && ac->errstr ? ac->errstr
                                                                        : "out of memory");
        note_why(l, ac && ac->errstr[0] ? ac->errstr : "cannot connect");
        if (ac) redisAsyncFree(ac);
        free(w);
        pause_then_connect(l);
        return;
    }
    w->poll.data = w;
    w->link = l;
    w->ac = ac;
    ac->data = l;
    ac->ev.data = w;
    ac->ev.addRead = add_read;
    ac->ev.delRead = del_read;
    ac->ev.addWrite = add_write;
    ac->ev.delWrite = del_write;
    ac->ev.cleanup = cleanup;
    l->ac = ac;
    redisAsyncSetConnectCallback(ac, on_connected); /* also begins to wait for writability */
    redisAsyncSetDisconnectCallback(ac, on_disconnected);
}

void redis_link_drop(struct redis_link *l, const char *why) {
    if (!l->ac) return;
    note_why(l, why);
    kn_warn("redis_connection_dropped reason=\"%s\" waiting=%zu", why, l->count);
    redisAsyncFree(l->ac); /* at once, or after the callback that we are in */
}

/* ---- the queue */

static bool not_now(const redisReply *r) {
    static const char *const words[] = {"LOADING",    "OOM",         "MISCONF",  "READONLY", "NOSCRIPT",
                                        "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY",     "NOREPLICAS"};
    if (r->type != REDIS_REPLY_ERROR) return false;
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        size_t n = strlen(words[i]);
        if (strncmp(r->str, words[i], n) == 0 && (r->str[n] == ' ' || r->str[n] == 0)) return true;
    }
    return false;
}

static void send_queued(struct redis_link *l);

static void on_answer(redisAsyncContext *ac, void *reply, void *data) {
    struct command *c = data;
    const redisReply *r = reply;
    if (!r) return; /* the connection ends: c stays in the queue, or is gone with it */
    struct redis_link *l = c->link;
    if (l->ac != ac || l->phase != UP) return;
    assert(c == l->first);
    bool held = l->opt.hold && l->opt.hold(l->opt.ctx, r);
    if (held || not_now(r)) {
        redis_link_drop(l, held ? "it lacks what it had answered for" : r->str);
        enter(l, PAUSING); /* the answers behind this one are not taken any more: order is kept */
        return;
    }
    l->failures = 0;
    l->first = c->next;
    if (!l->first) l->last = NULL;
    l->count--;
    l->bytes -= c->len;
    l->sent_bytes -= c->len;
    if (c->fn) c->fn(c->ctx, r);
    free(c);
    send_queued(l);
    heard(l, true);
}

static void send_queued(struct redis_link *l) {
    if (l->phase != UP || !l->ac || l->front_on) return;
    while (l->unsent && (l->sent_bytes == 0 || l->sent_bytes + l->unsent->len <= SENT_BYTES_MAX)) {
        struct command *c = l->unsent;
        if (redisAsyncFormattedCommand(l->ac, on_answer, c, c->bytes, c->len) != REDIS_OK) return;
        c->sent_ms = kn_clock_ms();
        asked(l);
        l->sent_bytes += c->len;
        l->unsent = c->next;
    }
}

/* Where the next command is queued: at the end, or behind those of the front that were not sent yet. */
static struct command **place(struct redis_link *l) {
    if (!l->front_on) return l->last ? &l->last->next : &l->first;
    if (l->front) return &l->front->next;
    struct command **at = &l->first;
    while (*at != l->unsent) at = &(*at)->next;
    while (*at && (*at)->front) at = &(*at)->next;
    return at;
}

void redis_link_front(struct redis_link *l, bool on) {
    l->front_on = on;
    l->front = NULL;
    if (!on) send_queued(l);
}

int redis_link_send(struct redis_link *l, int argc, const char **argv, const size_t *len, redis_link_reply fn,
                    void *ctx) {
    char *formatted = NULL;
    long long n = redisFormatCommandArgv(&formatted, argc, argv, len);
    if (n < 0) return KN_ENOMEM;
    size_t bytes = (size_t)n;
    bool full = l->bytes + bytes > l->opt.bytes_max && l->count > 0;
    int rc = full && !l->front_on ? KN_EAGAIN : 0;
    struct command *c = rc ? NULL : malloc(sizeof *c + bytes + 1);
    if (!rc && !c) rc = KN_ENOMEM;
    if (!rc) {
        *c = (struct command){.link = l, .fn = fn, .ctx = ctx, .len = bytes, .front = l->front_on};
        memcpy(c->bytes, formatted, bytes + 1);
        struct command **at = place(l);
        c->next = *at;
        *at = c;
        if (!c->next) l->last = c;
        if (l->unsent == c->next) l->unsent = c;
        if (l->front_on) l->front = c;
        l->count++;
        l->bytes += bytes;
        send_queued(l);
    }
    redisFreeCommand(formatted);
    return rc;
}

static void on_direct(redisAsyncContext *ac, void *reply, void *data) {
    struct direct *d = data;
    const redisReply *r = reply;
    struct redis_link *l = d->link;
    l->directs--;
    if (r && l->ac == ac) {
        if (not_now(r)) {
            redis_link_drop(l, r->str);
        } else {
            d->fn(d->ctx, r);
            heard(l, false);
        }
    }
    free(d);
}

void redis_link_direct(struct redis_link *l, int argc, const char **argv, const size_t *len,
                       redis_link_reply fn, void *ctx) {
    struct direct *d = malloc(sizeof *d);
    if (!l->ac || !d) {
        free(d);
        return;
    }
    *d = (struct direct){l, fn, ctx};
    if (redisAsyncCommandArgv(l->ac, on_direct, d, argc, argv, len) != REDIS_OK) {
        free(d);
        return;
    }
    l->directs++;
    asked(l);
}

void redis_link_up(struct redis_link *l) {
    if (l->phase != GREETING) return;
    enter(l, UP);
    kn_info("redis_up waiting=%zu", l->count);
    send_queued(l);
    heard(l, false);
}

bool redis_link_is_up(const struct redis_link *l) {
    return l->phase == UP;
}

uint64_t redis_link_silent_ms(const struct redis_link *l, const char **why) {
    *why = l->why;
    return l->silent_since ? kn_clock_ms() - l->silent_since : 0;
}

static void on_pong(void *ctx, const redisReply *r) {
    (void)ctx;
    (void)r;
}

static void on_watch(uv_timer_t *t) {
    static const char *const ping[] = {"PING"};
    struct redis_link *l = t->data;
    uint64_t now = kn_clock_ms();
    if (l->phase == UP && !l->silent_since && now - l->heard_ms >= PING_MS)
        redis_link_direct(l, 1, (const char **)(uintptr_t)ping, &(size_t){4}, on_pong, NULL);
    if ((l->phase == CONNECTING || l->phase == GREETING) && now - l->phase_ms > CONNECT_MS)
        redis_link_drop(l, l->phase == CONNECTING ? "connecting took too long" : "no answer to the greeting");
    else if (l->phase == UP && l->first && l->first != l->unsent && now - l->first->sent_ms > ANSWER_MS)
        redis_link_drop(l, "no answer");
}

/* ---- life */

int redis_link_create(uv_loop_t *loop, const struct redis_link_options *opt, struct redis_link **out,
                      struct kn_err *err) {
    struct redis_link *l = calloc(1, sizeof *l);
    if (!l) return kn_err_set(err, KN_ENOMEM, "Redis: out of memory");
    l->opt = *opt;
    l->loop = loop;
    uv_timer_init(loop, &l->pause);
    uv_timer_init(loop, &l->watch);
    l->handles = 2;
    l->pause.data = l->watch.data = l;
    uv_timer_start(&l->watch, on_watch, WATCH_MS, WATCH_MS);
    uv_timer_start(&l->pause, on_pause_over, 0,
                   0); /* once the loop runs: what it takes to read back is no delay */
    *out = l;
    return 0;
}

static void on_timer_closed(uv_handle_t *h) {
    struct redis_link *l = h->data;
    if (--l->handles == 0) free(l);
}

void redis_link_destroy(struct redis_link *l) {
    if (!l) return;
    l->destroyed = true;
    if (l->ac) redisAsyncFree(l->ac);
    struct command *c = l->first;
    l->first = l->last = l->unsent = NULL;
    while (c) {
        struct command *next = c->next;
        if (c->fn) c->fn(c->ctx, NULL);
        free(c);
        c = next;
    }
    uv_close((uv_handle_t *)&l->pause, on_timer_closed);
    uv_close((uv_handle_t *)&l->watch, on_timer_closed);
}
