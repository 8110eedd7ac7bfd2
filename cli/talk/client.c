/* See client.h. */
#include "cli/talk/client.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <uv.h>

#include "base/clock.h"
#include "base/log.h"
#include "cli/cli.h"
#include "proto/join.h"

#define TICK_MS 50
#define TICK_LONG_MS 250 /* once a call has waited for PATIENT_MS: the client sleeps while a farm is away */
#define PATIENT_MS 1000
#define SEND_AGAIN_MS 500 /* where nobody took a message: the connection tells when somebody may */
#define PROBE_MS 1000     /* a call that waited for so long asks what keeps the farm */
#define SILENT_MS 2500    /* …and a person is told after so long */
#define RESEND_MS 3000    /* an unanswered request is asked again on a new connection */
#define FETCH_WINDOW 16
#define FETCH_TRIES 4

struct call {               /* a question that waits for its answer */
    const struct kn_msg *m; /* borrowed; its request is this call's number */
    struct kn_msg *reply;   /* owns; NULL: not yet */
    bool taken;             /* by the connection that there is */
};

struct client {
    uv_loop_t loop;
    uv_timer_t tick;
    bool ticking;
    struct kn_wire *wire;
    struct kn_sock *control, *data;
    char endpoint[KN_ENDPOINT_MAX + 1];
    char data_endpoint[KN_ENDPOINT_MAX + 1];
    struct kn_welcome welcome; /* its strings: below */
    char data_ipc[KN_ENDPOINT_MAX + 1], objects_dir[4096], version[KN_NAME_MAX + 1],
        default_model[KN_NAME_MAX + 1];
    uint8_t farm_key[KN_KEY_BYTES];
    uint64_t features; /* of the coordinator */
    bool welcomed, greet_again;
    bool room; /* the connection may take a message */
    unsigned tick_ms;
    uint64_t probe; /* the request that asks what keeps the farm; 0: none was sent */
    bool probed;    /* …and it was answered */
    bool told;      /* the person knows that nobody answers */
    uint64_t next_request;
    struct call *calls; /* borrowed, while somebody waits for them */
    size_t call_count;
    bool heed_interrupt;
    int limit_ms;
    int (*idle)(void *ctx, int silent_ms, struct kn_err *err);
    void *idle_ctx;
    struct fetch *fetch; /* while client_fetch runs */
};

struct fetch {
    const struct client_objects *o;
    struct slot {
        bool used;
        size_t i;
        uint64_t request;
        int tries;
    } slots[FETCH_WINDOW];
    size_t next, left;
    uint64_t heard_ms;
    int rc;
    struct kn_err *err;
};

static void on_tick(uv_timer_t *t) {
    (void)t; /* it only ends uv_run(UV_RUN_ONCE) */
}

static void keep_welcome(struct client *c, const struct kn_welcome *w) {
    c->welcome = *w;
    snprintf(c->data_ipc, sizeof c->data_ipc, "%s", w->data_ipc);
    snprintf(c->objects_dir, sizeof c->objects_dir, "%s", w->objects_dir);
    snprintf(c->version, sizeof c->version, "%s", w->version);
    snprintf(c->default_model, sizeof c->default_model, "%s", w->default_model);
    c->welcome.data_ipc = c->data_ipc;
    c->welcome.objects_dir = c->objects_dir;
    c->welcome.version = c->version;
    c->welcome.default_model = c->default_model;
    c->features = kn_features_of_peer(w->features, w->feature_count);
    if (w->farm_key_len == sizeof c->farm_key) memcpy(c->farm_key, w->farm_key, sizeof c->farm_key);
    c->welcome.farm_key = c->farm_key;
    c->welcome.farm_key_len = w->farm_key_len == sizeof c->farm_key ? w->farm_key_len : 0;
    c->welcome.features = NULL;
    c->welcome.feature_count = 0;
    c->welcomed = true;
}

/* ---- why nobody answers ---- */

static char silence[KN_WAIT_TEXT_MAX]; /* a process has one client */

const char *client_silence(void) {
    return silence;
}

static void silence_say(const char *text) {
    snprintf(silence, sizeof silence, "%s", text);
}

/* Looks at the other end of an ipc endpoint. KN_EPERM: it may not be used. */
static int look_at_peer(const char *path, char *out, size_t out_max, struct kn_err *err) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct ucred who = {0};
    socklen_t len = sizeof who;
    char stat[64], state = '?';
    if (strlen(path) >= sizeof a.sun_path) return KN_OK;
    strcpy(a.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return KN_OK;
    int e = connect(fd, (struct sockaddr *)&a, sizeof a) ? errno : 0;
    bool known = !e && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) == 0 && who.pid > 0;
    close(fd);
    if (e == EACCES || e == EPERM)
        return kn_err_set(err, KN_EPERM,
                          "%s: %s: it is another user's farm; ask them, or use one of your own (--farm DIR)",
                          path, strerror(e));
    if (e == ENOENT || e == ECONNREFUSED) {
        snprintf(out, out_max,
                 "no coordinator listens there; one that died is started again by kiln up's supervisor, "
                 "which tells why it ends in the farm's log folder");
        return KN_OK;
    }
    if (!known) return KN_OK;
    snprintf(stat, sizeof stat, "/proc/%d/stat", (int)who.pid);
    FILE *f = fopen(stat, "re");
    if (f) {
        if (fscanf(f, "%*d (%*[^)]) %c", &state) != 1) state = '?';
        fclose(f);
    }
    if (state == 'T' || state == 't')
        snprintf(out, out_max, "its coordinator (process %d) is stopped; kill -CONT %d lets it go on",
                 (int)who.pid, (int)who.pid);
    else
        snprintf(out, out_max, "its coordinator (process %d) is there and does not answer; see its log",
                 (int)who.pid);
    return KN_OK;
}

static void look(struct client *c) {
    char text[KN_WAIT_TEXT_MAX] = "";
    if (strncmp(c->endpoint, "ipc://", 6) == 0)
        (void)look_at_peer(c->endpoint + 6, text, sizeof text,
                           NULL); /* allowed: it was asked at the beginning */
    else {
        struct kn_err why = {0};
        const char *refusal = kn_sock_refusal(c->control);
        snprintf(text, sizeof text, "%s",
                 refusal ? refusal
                 : kn_endpoint_look_up(c->endpoint, &why)
                     ? why.text
                     : "look whether the farm is up there and the network reaches it");
    }
    silence_say(text);
}

/* Asks beside the call that waits what keeps the farm from answering; a coordinator that is there tells. */
static void probe(struct client *c) {
    struct kn_msg m = {.type = KN_MSG_FARM_QUERY, .request = ++c->next_request};
    if (kn_sock_send(c->control, NULL, &m, NULL, NULL) == KN_OK) c->probe = m.request;
}

static void be_silent(struct client *c, uint64_t waited_ms) {
    if (waited_ms < PROBE_MS) return;
    if (!c->probe && c->welcomed) probe(c);
    if (waited_ms < SILENT_MS) return;
    if (!c->probed) look(c);
    if (c->idle || c->told) return; /* somebody else shows it */
    c->told = true;
    cli_say("the farm at %s has not answered for %llu s%s%s", c->endpoint,
            (unsigned long long)(waited_ms / 1000), silence[0] ? ": " : "", silence);
}

/* ---- calls ---- */

static void on_room(struct kn_sock *s, void *ctx) {
    struct client *c = ctx;
    (void)s;
    c->room = true;
}

static void tick_every(struct client *c, unsigned ms) {
    if (c->tick_ms == ms) return;
    c->tick_ms = ms;
    uv_timer_start(&c->tick, on_tick, ms, ms);
}

static void on_control(struct kn_sock *s, void *ctx, const struct kn_peer *peer, struct kn_msg *msg,
                       struct kn_blob *blob) {
    struct client *c = ctx;
    (void)s;
    (void)peer;
    (void)blob;
    if (msg->type == KN_MSG_WELCOME) keep_welcome(c, &msg->u.welcome);
    if (msg->type == KN_MSG_FARM_STATUS && msg->request == c->probe) {
        const struct kn_farm_status *f = &msg->u.farm_status;
        c->probed = true;
        silence_say(f->store_text[0]  ? f->store_text
                    : f->disk_text[0] ? f->disk_text
                                      : "the coordinator is there, and is busy with it");
        if (!f->store_text[0] && !f->disk_text[0]) c->probe = 0; /* it may tell more when it is asked again */
    }
    if (msg->type == KN_MSG_HELLO_AGAIN) c->greet_again = true;
    for (size_t i = 0; i < c->call_count && msg->request; i++) {
        if (c->calls[i].m->request != msg->request || c->calls[i].reply) continue;
        c->calls[i].reply = msg;
        return;
    }
    kn_msg_destroy(msg);
}

static void greet(struct client *c) {
    struct kn_msg m = {.type = KN_MSG_CLIENT_HELLO, .request = ++c->next_request};
    m.u.client_hello.client = "kiln " KILN_VERSION;
    int rc = kn_sock_send(c->control, NULL, &m, NULL, NULL);
    (void)
        rc; /* no room: the request behind it will not have any either, and is tried again with a greeting */
}

const struct kn_welcome *client_welcome(const struct client *c) {
    return &c->welcome;
}

int client_needs(const struct client *c, uint64_t features, struct kn_err *err) {
    char words[KN_FEATURES_TEXT_MAX];
    uint64_t lacks = features & ~c->features;
    if (!lacks) return KN_OK;
    return kn_err_set(
        err, KN_EUNSUPPORTED,
        "this farm's coordinator (%s) does not know %s, and this program (kiln %s) does: upgrade "
        "kiln-coordinator on the farm, or do without",
        c->version, kn_features_words(lacks, words), KILN_VERSION);
}

const char *client_endpoint(const struct client *c) {
    return c->endpoint;
}

void client_heed_interrupt(struct client *c, bool on) {
    c->heed_interrupt = on;
}

void client_limit(struct client *c, int ms) {
    c->limit_ms = ms;
}

void client_on_idle(struct client *c, int (*fn)(void *ctx, int silent_ms, struct kn_err *err), void *ctx) {
    c->idle = fn;
    c->idle_ctx = ctx;
}

/* Sends what the connection has not taken yet, in order. True: all of it is taken. */
static int send_calls(struct client *c, bool *all, struct kn_err *err) {
    *all = true;
    for (size_t i = 0; i < c->call_count; i++) {
        struct call *x = &c->calls[i];
        if (x->taken || x->reply) continue;
        int rc = kn_sock_send(c->control, NULL, x->m, NULL, err);
        if (rc && rc != KN_EAGAIN && rc != KN_EGONE) return rc;
        x->taken = rc == KN_OK;
        if (!x->taken) {
            *all = false;
            return KN_OK;
        }
    }
    return KN_OK;
}

static bool first_answered(const struct client *c) {
    return c->calls[0].reply != NULL;
}

/* Until the first of the calls is answered, or the reason why it is not. The others are on their way meanwhile; all that
 * has no answer is asked again on a new connection where none comes. */
static int await_first(struct client *c, int timeout_ms, struct kn_err *err) {
    uint64_t start = kn_clock_ms(), sent = start, idle_at = start + 500, send_at = start;
    bool all = false, hello = c->calls[0].m->type == KN_MSG_CLIENT_HELLO;
    c->probe = 0;
    c->probed = false;
    silence[0] = '\0';
    tick_every(c, TICK_MS);
    if (c->limit_ms && timeout_ms > c->limit_ms) timeout_ms = c->limit_ms;
    while (!first_answered(c)) {
        uint64_t now = kn_clock_ms();
        if (c->heed_interrupt && cli_interrupted) return kn_err_set(err, KN_ECANCELED, "interrupted");
        if (now - start >= (uint64_t)timeout_ms)
            return kn_err_set(err, hello ? KN_ETIMEOUT : KN_EUNSURE, "the farm at %s does not answer%s%s",
                              c->endpoint, silence[0] ? ": " : "", silence);
        if (now - start >= PATIENT_MS) tick_every(c, TICK_LONG_MS);
        if (all && (c->greet_again || now - sent >= RESEND_MS)) {
            if (!c->greet_again) {
                int rc = kn_sock_reconnect(c->control, err);
                if (rc) return rc;
            }
            c->greet_again = false;
            if (!hello) greet(c);
            for (size_t i = 0; i < c->call_count; i++) c->calls[i].taken = false;
            all = false;
            send_at = now;
            if (!c->probed) c->probe = 0;
        }
        if (!all && (c->room || now >= send_at)) {
            c->room = false;
            send_at = now + SEND_AGAIN_MS;
            int rc = send_calls(c, &all, err);
            if (rc) return rc;
            if (all) sent = now;
        }
        if (now >= idle_at) {
            be_silent(c, now - start);
            int rc = c->idle ? c->idle(c->idle_ctx, (int)(now - start), err) : KN_OK;
            if (rc) return rc;
            idle_at = now + 500;
        }
        uv_run(&c->loop, UV_RUN_ONCE);
    }
    return KN_OK;
}

/* Reads the answer to m. */
static int heed_reply(struct client *c, const struct kn_msg *m, const struct kn_msg *r, enum kn_msg_type want,
                      struct kn_err *err) {
    if (c->told) cli_say("the farm answers again");
    c->told = false;
    silence[0] = '\0';
    if (r->type == KN_MSG_REPLY && r->u.reply.code)
        return kn_err_set(err, r->u.reply.code, "%s",
                          r->u.reply.text[0] ? r->u.reply.text : kn_err_words(r->u.reply.code));
    if (r->type != want)
        return kn_err_set(err, KN_EPROTO, "the farm answered %s with %s", kn_msg_name(m->type),
                          kn_msg_name(r->type));
    return KN_OK;
}

int client_call(struct client *c, struct kn_msg *m, enum kn_msg_type want, int timeout_ms,
                struct kn_msg **reply, struct kn_err *err) {
    struct call one = {.m = m};
    assert(!c->calls);
    m->request = ++c->next_request;
    c->calls = &one;
    c->call_count = 1;
    int rc = await_first(c, timeout_ms, err);
    c->calls = NULL;
    c->call_count = 0;
    tick_every(c, TICK_MS);
    if (rc == KN_OK) rc = heed_reply(c, m, one.reply, want, err);
    if (rc == KN_OK && reply)
        *reply = one.reply;
    else
        kn_msg_destroy(one.reply);
    return rc;
}

/* The calls of client_calls(): in the order in which they were made; the first is the oldest. */
struct window {
    struct call calls[CLIENT_WINDOW];
    struct kn_msg msgs[CLIENT_WINDOW];
    struct kn_buf bufs[CLIENT_WINDOW];
    size_t place[CLIENT_WINDOW]; /* of calls[i] in msgs and bufs */
};

static void window_shift(struct client *c, struct window *w) {
    size_t freed = w->place[0];
    kn_msg_destroy(w->calls[0].reply);
    c->call_count--;
    memmove(w->calls, w->calls + 1, c->call_count * sizeof w->calls[0]);
    memmove(w->place, w->place + 1, c->call_count * sizeof w->place[0]);
    w->place[c->call_count] = freed;
}

/* Makes the next question and sends it at once where there is room. KN_ENOENT: there is none. */
static int window_fill(struct client *c, struct window *w, client_next next, void *ctx, struct kn_err *err) {
    size_t at = w->place[c->call_count];
    struct kn_msg *m = &w->msgs[at];
    struct call *x = &w->calls[c->call_count];
    bool all;
    *m = (struct kn_msg){0};
    kn_buf_clear(&w->bufs[at]);
    int rc = next(ctx, m, &w->bufs[at], err);
    if (rc) return rc;
    m->request = ++c->next_request;
    *x = (struct call){.m = m};
    c->call_count++;
    return send_calls(c, &all, err); /* what is not taken now is when it is waited for */
}

int client_calls(struct client *c, client_next next, void *ctx, size_t bytes_max, int timeout_ms,
                 struct kn_err *err) {
    struct window *w = calloc(1, sizeof *w);
    bool over = false;
    int rc = KN_OK;
    if (!w) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    assert(!c->calls);
    for (size_t i = 0; i < CLIENT_WINDOW; i++) {
        kn_buf_init(&w->bufs[i], bytes_max);
        w->place[i] = i;
    }
    c->calls = w->calls;
    while (rc == KN_OK && (!over || c->call_count > 0)) {
        if (!over && c->call_count < CLIENT_WINDOW) {
            rc = window_fill(c, w, next, ctx, err);
            over = rc == KN_ENOENT;
            if (over) rc = KN_OK;
            if (rc == KN_OK && !over) uv_run(&c->loop, UV_RUN_NOWAIT);
            continue;
        }
        rc = await_first(c, timeout_ms, err);
        if (rc == KN_OK) rc = heed_reply(c, w->calls[0].m, w->calls[0].reply, KN_MSG_REPLY, err);
        if (rc == KN_OK) window_shift(c, w);
    }
    for (size_t i = 0; i < c->call_count; i++) kn_msg_destroy(w->calls[i].reply);
    for (size_t i = 0; i < CLIENT_WINDOW; i++) kn_buf_fini(&w->bufs[i]);
    c->calls = NULL;
    c->call_count = 0;
    tick_every(c, TICK_MS);
    free(w);
    return rc;
}

int client_sleep(struct client *c, int ms, struct kn_err *err) {
    uint64_t end = kn_clock_ms() + (uint64_t)ms;
    while (kn_clock_ms() < end) {
        if (c->heed_interrupt && cli_interrupted) return kn_err_set(err, KN_ECANCELED, "interrupted");
        uv_run(&c->loop, UV_RUN_ONCE);
    }
    return KN_OK;
}

static int hello(struct client *c, int timeout_ms, struct kn_err *err) {
    struct kn_msg m = {.type = KN_MSG_CLIENT_HELLO};
    m.u.client_hello.client = "kiln " KILN_VERSION;
    return client_call(c, &m, KN_MSG_WELCOME, timeout_ms, NULL, err);
}

static void say_refusal(const char *endpoint, const char *why) {
    cli_say("%s: %s", endpoint, why);
}

/* This person's way onto a farm that is reached by TCP. */
static int join(const struct kn_join_list *farm, int timeout_ms, struct kn_join *out, struct kn_err *err) {
    char name[KN_NAME_MAX + 1] = "", *user = getenv("USER");
    char host[KN_HOST_MAX + 1] = "";
    if (gethostname(host, sizeof host - 1) != 0) host[0] = '\0';
    snprintf(name, sizeof name, "%.30s.%.30s", user && user[0] ? user : "somebody",
             host[0] ? host : "somewhere");
    for (char *p = name; *p; p++)
        if (!isalnum((unsigned char)*p) && !strchr("._-", *p)) *p = '-';
    struct kn_join_options o = {
        .farm = farm, .token = cli_token, .name = name, .say = say_refusal, .timeout_ms = timeout_ms};
    return kn_join(&o, out, err);
}

static int open_one(const char *endpoint, const struct kn_join *keys, int timeout_ms, struct client **out,
                    struct kn_err *err) {
    struct client *c = calloc(1, sizeof *c);
    if (!c) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    snprintf(c->endpoint, sizeof c->endpoint, "%s", endpoint);
    c->heed_interrupt = true;
    if (uv_loop_init(&c->loop)) {
        free(c);
        return kn_err_set(err, KN_EIO, "no event loop");
    }
    uv_timer_init(&c->loop, &c->tick);
    tick_every(c, TICK_MS);
    c->ticking = true;
    struct kn_sock_options opt = {.recv = on_control, .writable = on_room, .ctx = c};
    char unused[KN_WAIT_TEXT_MAX];
    int rc =
        strncmp(endpoint, "ipc://", 6) == 0 ? look_at_peer(endpoint + 6, unused, sizeof unused, err) : KN_OK;
    if (rc == KN_OK) rc = kn_wire_create(&c->loop, &c->wire, err);
    if (rc == KN_OK && keys->keyed) kn_wire_use_keys(c->wire, &keys->own, &keys->server);
    if (rc == KN_OK) rc = kn_sock_create(c->wire, &opt, &c->control, err);
    if (rc == KN_OK) rc = kn_sock_connect(c->control, endpoint, err);
    if (rc == KN_OK) rc = hello(c, timeout_ms, err);
    if (rc) {
        client_close(c);
        return rc;
    }
    *out = c;
    return KN_OK;
}

int client_open(const char *endpoint, int timeout_ms, struct client **out, struct kn_err *err) {
    struct kn_join_list farm;
    struct kn_join keys = {0};
    int rc = kn_join_split(endpoint, &farm, err);
    if (rc == KN_OK) rc = join(&farm, timeout_ms, &keys, err);
    if (rc) return rc;
    for (int i = 0; i < farm.count; i++) {
        rc = open_one(farm.v[i], &keys, timeout_ms, out, err);
        if (rc != KN_ETIMEOUT) break;
    }
    kn_key_pair_forget(&keys.own);
    return rc;
}

void client_close(struct client *c) {
    if (!c) return;
    kn_sock_destroy(c->data);
    kn_sock_destroy(c->control);
    if (c->wire) kn_wire_destroy(c->wire);
    if (c->ticking) uv_close((uv_handle_t *)&c->tick, NULL);
    for (int i = 0; i < 100 && uv_run(&c->loop, UV_RUN_NOWAIT); i++) {
    }
    if (uv_loop_close(&c->loop) == 0)
        free(c); /* else handles of ZeroMQ are still closing: the process ends soon */
}

/* ---- objects ---- */

static void on_data(struct kn_sock *s, void *ctx, const struct kn_peer *peer, struct kn_msg *msg,
                    struct kn_blob *blob) {
    struct client *c = ctx;
    struct fetch *f = c->fetch;
    (void)s;
    (void)peer;
    if (!f || msg->type != KN_MSG_OBJECT_REPLY) goto out;
    for (size_t k = 0; k < FETCH_WINDOW; k++) {
        struct slot *slot = &f->slots[k];
        if (!slot->used || slot->request != msg->request) continue;
        f->heard_ms = kn_clock_ms();
        size_t i = slot->i;
        const struct kn_object_reply *r = &msg->u.object_reply;
        uint8_t digest[KN_SHA256_BYTES];
        if (r->code || !blob || !blob->data) {
            slot->used = false;
            f->left--;
            f->o->missing(f->o->ctx, i,
                          r->text && r->text[0] ? r->text : kn_err_words(r->code ? r->code : KN_EPROTO));
            break;
        }
        kn_sha256(blob->data, blob->len, digest);
        if (memcmp(digest, f->o->digests[i], sizeof digest) != 0) {
            slot->request = 0; /* asked again */
            if (++slot->tries < FETCH_TRIES) break;
            slot->used = false;
            f->left--;
            f->o->missing(f->o->ctx, i, kn_err_words(KN_ECORRUPT));
            break;
        }
        slot->used = false;
        f->left--;
        if (f->rc == KN_OK) f->rc = f->o->got(f->o->ctx, i, blob->data, blob->len, f->err);
        break;
    }
out:
    kn_msg_destroy(msg);
}

static int open_data(struct client *c, struct kn_err *err) {
    char endpoint[KN_ENDPOINT_MAX + 1];
    int rc = kn_endpoint_data(c->endpoint, &c->welcome, endpoint, err);
    if (rc) return rc;
    kn_sock_destroy(c->data);
    c->data = NULL;
    struct kn_sock_options opt = {.blobs = true, .recv = on_data, .writable = on_room, .ctx = c};
    rc = kn_sock_create(c->wire, &opt, &c->data, err);
    if (rc == KN_OK) rc = kn_sock_connect(c->data, endpoint, err);
    return rc;
}

int client_fetch(struct client *c, const struct client_objects *objects, struct kn_err *err) {
    struct fetch f = {.o = objects, .left = objects->count, .heard_ms = kn_clock_ms(), .err = err};
    uint64_t start = kn_clock_ms(), idle_at = start + 500, send_at = 0;
    if (!c->data) {
        int rc = open_data(c, err);
        if (rc) return rc;
    }
    c->fetch = &f;
    while (f.left > 0 && f.rc == KN_OK) {
        uint64_t now = kn_clock_ms();
        if (c->heed_interrupt && cli_interrupted) {
            f.rc = kn_err_set(err, KN_ECANCELED, "interrupted");
            break;
        }
        if (now - f.heard_ms >
            RESEND_MS) { /* greet again: a coordinator that came back may have another data port */
            f.rc = hello(c, CLIENT_RESTART_MS, err);
            if (f.rc == KN_OK) f.rc = open_data(c, err);
            if (f.rc) break;
            f.heard_ms = kn_clock_ms();
            for (size_t k = 0; k < FETCH_WINDOW; k++) f.slots[k].request = 0;
            send_at = 0;
        }
        bool may_send = c->room || now >= send_at;
        c->room = false;
        for (size_t k = 0; may_send && k < FETCH_WINDOW; k++) {
            struct slot *s = &f.slots[k];
            if (!s->used && f.next < objects->count) *s = (struct slot){.used = true, .i = f.next++};
            if (!s->used || s->request) continue;
            struct kn_msg m = {.type = KN_MSG_OBJECT_GET, .request = ++c->next_request};
            memcpy(m.u.object_get.sha256, objects->digests[s->i], KN_SHA256_BYTES);
            m.u.object_get.has_batch = objects->batch != NULL;
            if (objects->batch) memcpy(m.u.object_get.batch, objects->batch, sizeof m.u.object_get.batch);
            m.u.object_get.task = objects->tasks[s->i];
            int rc = kn_sock_send(c->data, NULL, &m, NULL, err);
            if (rc == KN_OK)
                s->request = m.request;
            else if (rc == KN_EAGAIN || rc == KN_EGONE) {
                send_at = now + SEND_AGAIN_MS;
                break;
            } else {
                f.rc = rc;
                break;
            }
        }
        if (c->idle && now >= idle_at) {
            int rc = c->idle(c->idle_ctx, (int)(now - f.heard_ms), err);
            if (rc) f.rc = rc;
            idle_at = now + 500;
        }
        if (f.rc == KN_OK && f.left > 0) uv_run(&c->loop, UV_RUN_ONCE);
    }
    c->fetch = NULL;
    return f.rc;
}
