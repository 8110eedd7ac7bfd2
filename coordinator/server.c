/* See server.h. Here is the top: life, the sockets and who hears what comes on them, and the timers. */
#include "coordinator/server.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/aside.h"
#include "coordinator/carry_out.h"
#include "coordinator/clients.h"
#include "coordinator/enrol.h"
#include "coordinator/inspect.h"
#include "coordinator/keys.h"
#include "coordinator/lost.h"
#include "coordinator/repair.h"
#include "coordinator/scrub.h"
#include "coordinator/send.h"
#include "coordinator/trash.h"
#include "coordinator/workers.h"
#include "proto/gate.h"

#define TICK_MAX_MS 100
#define STALL_MS 2000
#define SWEEP_MS 10000
#define TEMP_MS 60000 /* what was half written so long ago was written by a process that was killed */
#define CONNS_MAX (KN_WORKERS_MAX * 2)

/* ---- flow and time */

#define WANTED_EVERY_MS 2000 /* workers are asked to send again what was refused */

static void on_tick(uv_timer_t *t) {
    struct server *s = t->data;
    struct farm_event ev = {.type = EV_TICK};
    uint64_t now = kn_clock_ms(), before = s->ticked_ms;
    s->ticked_ms = now;
    server_flow(s);
    kn_gate_sweep();
    trash_tick(s);
    if (before && now - before > STALL_MS) {
        /* This process stood still. What workers said meanwhile waits in the sockets: hear it first. */
        kn_warn("stalled ms=%llu", (unsigned long long)(now - before));
        uv_timer_start(t, on_tick, TICK_MAX_MS, 0);
        return;
    }
    server_step(s, &ev);
    if (s->some_refused && !server_refuses(s) && now - s->wanted_ms >= WANTED_EVERY_MS) {
        s->wanted_ms = now;
        s->some_refused = s->disk_refused_ms != 0; /* only a picture shows that there is room again */
        workers_want_pictures(s);
    }
    now = kn_clock_ms();
    uint64_t next = farm_next_tick(s->farm, now), ms = next > now ? next - now : 1;
    uv_timer_start(t, on_tick, ms < TICK_MAX_MS ? ms : TICK_MAX_MS, 0);
}

static void tell_gate(struct server *s) {
    struct kn_gate_counts n = kn_gate_counts();
    if (n.put_out + n.refused == s->gate_told) return;
    s->gate_told = n.put_out + n.refused;
    kn_warn(
        "connections_full put_out=%llu refused=%llu text=\"%u workers fit by the limit of open files; kiln "
        "doctor tells more\"",
        (unsigned long long)n.put_out, (unsigned long long)n.refused, s->opt.workers_fit);
}

static void on_sweep(uv_timer_t *t) {
    struct server *s = t->data;
    tell_gate(s);
    kn_log_flush(false);
    workers_forget(s);
    enrol_sweep(s);
    clients_sweep(s);
    aside_sweep(s);
    trash_sweep(s);
    lost_sweep(s);
}

/* ---- life */

static void on_control(struct kn_sock *sock, void *ctx, const struct kn_peer *peer, struct kn_msg *msg,
                       struct kn_blob *blob) {
    struct listener *l = ctx;
    (void)blob;
    if (l->s->closing || !enrol_admits(l->s, l, sock, peer, msg) || enrol_message(l->s, l, peer, msg))
        kn_msg_destroy(msg);
    else if (!workers_message(l->s, l, peer, msg))
        clients_message(l->s, l, peer, msg);
    l->s->asker = NULL;
}

static void on_garbled(struct kn_sock *sock, void *ctx, const struct kn_peer *peer,
                       const struct kn_garbled *g) {
    struct listener *l = ctx;
    if (l->s->closing || !enrol_admits_garbled(l->s, sock)) return;
    workers_garbled(l, peer, g);
    clients_garbled(l->s, l, peer, g);
}

static void on_data(struct kn_sock *sock, void *ctx, const struct kn_peer *peer, struct kn_msg *msg,
                    struct kn_blob *blob) {
    struct server *s = ctx;
    bool admitted = !s->closing && enrol_admits(s, NULL, sock, peer, msg);
    if (admitted && msg->type == KN_MSG_IMAGE_RESULT) {
        workers_image(s, peer, msg, blob);
        s->asker = NULL;
        return;
    }
    if (admitted && msg->type == KN_MSG_OBJECT_GET)
        clients_object(s, peer, msg);
    else if (admitted && msg->type != KN_MSG_DATA_HELLO)
        kn_warn_of(send_conn(peer), "message_unexpected socket=data message=%s", kn_msg_name(msg->type));
    s->asker = NULL;
    kn_msg_destroy(msg);
}

/* As the control socket's listener does it: what cannot be decoded says nothing for a stranger. */
static void on_data_garbled(struct kn_sock *sock, void *ctx, const struct kn_peer *peer,
                            const struct kn_garbled *g) {
    struct server *s = ctx;
    (void)peer;
    (void)g;
    if (!s->closing) (void)enrol_admits_garbled(s, sock);
}

static void on_lost(void *ctx, int code, const char *text) {
    struct server *s = ctx;
    (void)code;
    kn_error("giving_up reason=\"%s\"", text);
    if (s->stopped) s->stopped(s->stopped_ctx, 4);
}

/* Makes the folder's path absolute: clients on this machine link its files from other working folders. */
static int find_objects(struct server *s, struct kn_err *err) {
    int rc = kn_fs_mkdirs(s->opt.dir, 0777, err);
    if (rc != 0) return kn_err_prefix(err, "--dir");
    char *whole = realpath(s->opt.dir, NULL);
    if (!whole) return kn_err_set(err, KN_EIO, "--dir %s: %s", s->opt.dir, strerror(errno));
    rc = kn_fs_join(s->objects, sizeof s->objects, whole, "objects");
    free(whole);
    return rc == 0 ? 0 : kn_err_set(err, rc, "--dir: too long");
}

/* A farm that listens by TCP has a key pair, in a folder of this user's alone. Another coordinator of the farm takes it from
 * there too. */
static int take_keys(struct server *s, struct kn_err *err) {
    char dir[KN_PATH_MAX], hex[2 * KN_KEY_BYTES + 1], name[KN_FINGERPRINT_TEXT];
    bool tcp = false;
    for (int i = 0; i < s->opt.listen_count; i++) tcp |= strncmp(s->opt.listen[i], "tcp://", 6) == 0;
    if (!tcp) return 0;
    int rc = kn_fs_join(dir, sizeof dir, s->opt.dir, "keys");
    if (rc != 0) return kn_err_set(err, rc, "--dir: too long");
    rc = kn_key_pair_keep(dir, "coordinator.key", &s->pair, err);
    if (rc != 0) return rc;
    s->has_pair = true;
    kn_wire_use_keys(s->wire, &s->pair, NULL);
    kn_hex(s->pair.own.bytes, sizeof s->pair.own.bytes, hex);
    kn_fingerprint(&s->pair.own, name);
    kn_info("farm_key fingerprint=%s public=%s", name, hex);
    return kn_wire_guard(s->wire, keys_admit, s, err);
}

int server_create(uv_loop_t *loop, const struct server_options *opt, struct store *store, struct server **out,
                  struct kn_err *err) {
    struct server *s = calloc(1, sizeof *s);
    if (!s) return kn_err_set(err, KN_ENOMEM, "coordinator: out of memory");
    struct farm_config config;
    farm_config_default(&config);
    config.term = store->term;
    s->opt = *opt;
    s->loop = loop;
    s->store = store;
    uv_timer_init(loop, &s->tick);
    uv_timer_init(loop, &s->sweep);
    s->tick.data = s->sweep.data = s;
    s->workers = kn_map_create(KN_WORKERS_MAX * 2);
    s->conns = kn_map_create(CONNS_MAX);
    int rc = s->workers && s->conns ? batches_init(&s->batches) : KN_ENOMEM;
    if (rc == 0) rc = keys_init(s);
    if (rc == 0) rc = farm_create(&config, &s->farm);
    if (rc != 0) kn_err_set(err, rc, "coordinator: %s", kn_err_words(rc));
    if (rc == 0) rc = find_objects(s, err);
    if (rc == 0) rc = kn_wire_create(loop, &s->wire, err);
    if (rc == 0) rc = take_keys(s, err);
    if (rc == 0) rc = collect_create(loop, s->objects, store->term, &s->collect, err);
    if (rc == 0 && (rc = trash_init(s)) != 0) kn_err_set(err, rc, "coordinator: %s", kn_err_words(rc));
    store->lost = on_lost;
    store->back = server_repair;
    store->lost_ctx = s;
    *out = s; /* also on failure: server_close() and server_destroy() take what there is */
    return rc;
}

static int bind_data(struct server *s, struct listener *l, const char *endpoint, struct kn_err *err) {
    char data[KN_ENDPOINT_MAX + 1];
    if (l->ipc) {
        int n = snprintf(l->data_ipc, sizeof l->data_ipc, "%s-data", endpoint);
        if (n < 0 || (size_t)n >= sizeof l->data_ipc)
            return kn_err_set(err, KN_ELIMIT, "%.200s: too long", endpoint);
        return kn_sock_bind(s->data, l->data_ipc, NULL, err);
    }
    const char *port = strrchr(endpoint, ':');
    uint16_t want = s->data_port ? s->data_port : (uint16_t)s->opt.data_port, got = 0;
    int n = snprintf(data, sizeof data, "%.*s:%u", (int)(port - endpoint), endpoint, want);
    if (n < 0 || (size_t)n >= sizeof data) return kn_err_set(err, KN_ELIMIT, "%.200s: too long", endpoint);
    int rc = kn_sock_bind(s->data, data, &got, err);
    if (rc == 0) s->data_port = got;
    return rc;
}

static int listen_on(struct server *s, const char *endpoint, struct kn_err *err) {
    struct listener *l = &s->listeners[s->listener_count];
    struct kn_sock_options opt = {.router = true, .recv = on_control, .garbled = on_garbled, .ctx = l};
    char resolved[KN_ENDPOINT_MAX + 1];
    uint16_t port = 0;
    l->s = s;
    int rc = kn_endpoint_resolve(endpoint, resolved, err);
    if (rc == 0) rc = kn_sock_create(s->wire, &opt, &l->sock, err);
    if (rc != 0) return rc;
    s->listener_count++;
    l->ipc = strncmp(resolved, "ipc://", 6) == 0;
    rc = kn_sock_bind(l->sock, resolved, &port, err);
    if (rc == 0) rc = bind_data(s, l, resolved, err);
    if (rc != 0) return rc;
    if (l->ipc)
        snprintf(l->endpoint, sizeof l->endpoint, "%s", resolved);
    else
        snprintf(l->endpoint, sizeof l->endpoint, "%.*s:%u", (int)(strrchr(resolved, ':') - resolved),
                 resolved, port);
    kn_info("listening endpoint=%s data_port=%u", l->endpoint, l->ipc ? 0u : s->data_port);
    return 0;
}

int server_listen(struct server *s, struct kn_err *err) {
    struct kn_sock_options opt = {
        .router = true, .blobs = true, .recv = on_data, .garbled = on_data_garbled, .ctx = s};
    int rc = kn_sock_create(s->wire, &opt, &s->data, err);
    for (int i = 0; rc == 0 && i < s->opt.listen_count; i++) rc = listen_on(s, s->opt.listen[i], err);
    if (rc != 0) return rc;
    uv_timer_start(&s->tick, on_tick, 1, 0);
    uv_timer_start(&s->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
    trash_sweep(s);
    if (!s->opt.no_scrub && (rc = scrub_begin(s, s->opt.scrub_first_ms)) != 0)
        return kn_err_set(err, rc, "coordinator: out of memory");
    if (!s->opt.ready_file) return 0;
    kn_fs_remove_temps(s->opt.ready_file, TEMP_MS);
    char text[LISTEN_MAX * (KN_ENDPOINT_MAX + 2)];
    size_t used = 0;
    for (int i = 0; i < s->listener_count; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s\n", s->listeners[i].endpoint);
    rc = kn_fs_replace(s->opt.ready_file, text, used, false, err);
    return rc == 0 ? 0 : kn_err_prefix(err, "--ready-file");
}

void server_close(struct server *s) {
    if (s->closing) return;
    s->closing = true;
    if (s->opt.ready_file) unlink(s->opt.ready_file);
    for (int i = 0; i < s->listener_count; i++) kn_sock_destroy(s->listeners[i].sock);
    kn_sock_destroy(s->data);
    if (s->wire) kn_wire_unguard(s->wire);
    lost_sweep(s);
    store_close(s->store);
    s->store = NULL;
    lost_fini(s);
    scrub_end(s);
    trash_close(s);
    collect_destroy(s->collect);
    s->collect = NULL;
    uv_close((uv_handle_t *)&s->tick, NULL);
    uv_close((uv_handle_t *)&s->sweep, NULL);
}

void server_destroy(struct server *s) {
    if (!s) return;
    kn_wire_destroy(s->wire);
    kn_key_pair_forget(&s->pair);
    keys_fini(s);
    workers_fini(s);
    inspect_fini(s);
    aside_fini(s);
    batches_fini(&s->batches);
    farm_effects_fini(&s->fx);
    farm_destroy(s->farm);
    scrub_fini(s);
    trash_fini(s);
    kn_map_destroy(s->workers);
    kn_map_destroy(s->conns);
    server_forget_events(s);
    free(s->models);
    free(s);
}
