/* The bound on connections: strangers that connect and say nothing, beside peers that talk. The numbers are small, and
 * the gate's plan is made for them. */
#include "tests/unit/check.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "proto/gate.h"
#include "proto/wire.h"

#define PATIENCE_MS 20000
#define KNOWN 20
#define STRANGERS 300

static uv_loop_t loop;
static struct kn_wire *wire;

struct peer {
    struct kn_sock *s;
    int heard, ended;
    bool writable;
};

static void on_recv(struct kn_sock *s, void *ctx, const struct kn_peer *peer, struct kn_msg *m,
                    struct kn_blob *blob) {
    struct peer *p = ctx;
    (void)blob;
    p->heard++;
    if (peer) CHECK_INT(kn_sock_send(s, peer, m, NULL, NULL), 0);
    kn_msg_destroy(m);
}

static void on_writable(struct kn_sock *s, void *ctx) {
    (void)s;
    ((struct peer *)ctx)->writable = true;
}

static void on_broken(struct kn_sock *s, void *ctx) {
    (void)s;
    ((struct peer *)ctx)->ended++;
}

static void on_tick(uv_timer_t *t) {
    (void)t;
}

static void turn(void) {
    uv_timer_t tick;
    uv_timer_init(&loop, &tick);
    uv_timer_start(&tick, on_tick, 5, 5);
    uv_run(&loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&tick, NULL);
    uv_run(&loop, UV_RUN_NOWAIT);
}

static void make(struct peer *p, bool router) {
    struct kn_sock_options opt = {.router = router,
                                  .recv = on_recv,
                                  .writable = on_writable,
                                  .broken = router ? NULL : on_broken,
                                  .ctx = p};
    struct kn_err err = {0};
    CHECK_MSG(kn_sock_create(wire, &opt, &p->s, &err) == 0, "%s", err.text);
}

static void join(struct peer *p, const char *endpoint) {
    uint64_t end = kn_clock_ms() + PATIENCE_MS;
    make(p, false);
    CHECK_INT(kn_sock_connect(p->s, endpoint, NULL), 0);
    while (!p->writable && kn_clock_ms() < end) turn();
    CHECK(p->writable);
}

/* Says something and hears it again. */
static void talk(struct peer *p) {
    struct kn_msg m = {.type = KN_MSG_CLIENT_HELLO, .request = 1};
    uint64_t end = kn_clock_ms() + PATIENCE_MS;
    int before = p->heard, rc;
    m.u.client_hello.client = "one of those that are known here";
    while ((rc = kn_sock_send(p->s, NULL, &m, NULL, NULL)) == KN_EAGAIN && kn_clock_ms() < end) turn();
    CHECK_INT(rc, 0);
    while (p->heard == before && kn_clock_ms() < end) turn();
    CHECK_INT(p->heard, before + 1);
}

static int highest_open(void) {
    DIR *d = opendir("/proc/self/fd");
    int highest = 0;
    CHECK(d != NULL);
    for (struct dirent *e; (e = readdir(d));)
        if (atoi(e->d_name) > highest && atoi(e->d_name) != dirfd(d)) highest = atoi(e->d_name);
    closedir(d);
    return highest;
}

/* In a process of their own, as strangers are: their descriptors are not counted here. */
static pid_t strangers(uint16_t port, int told) {
    pid_t pid = fork();
    if (pid != 0) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* also where the test stops early */
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    for (int fd = 3; fd < 1024; fd++)
        if (fd != told) close(fd);
    for (int i = 0; i < STRANGERS; i++) {
        int s = socket(AF_INET, SOCK_STREAM, 0);
        if (s < 0 || connect(s, (struct sockaddr *)&a, sizeof a) != 0) _exit(1);
    }
    if (write(told, "x", 1) != 1) _exit(1);
    pause();
    _exit(0);
}

TEST(promise_connections_silent_strangers_put_nobody_out_and_let_others_in) {
    struct peer router = {0}, known[KNOWN] = {0}, late = {0};
    struct kn_gate_plan plan = {0};
    struct kn_err err = {0};
    char endpoint[64], byte;
    uint16_t port = 0;
    int told[2];
    kn_log_level_now = KN_LOG_ERROR;
    CHECK_INT(close_range(3, ~0U, 0), 0); /* what was inherited would leave holes in the numbers */
    CHECK_INT(uv_loop_init(&loop), 0);
    CHECK_MSG(kn_wire_create(&loop, &wire, &err) == 0, "%s", err.text);
    make(&router, true);
    CHECK_INT(kn_sock_bind(router.s, "tcp://127.0.0.1:*", &port, &err), 0);
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%u", port);
    for (int i = 0; i < KNOWN; i++) {
        join(&known[i], endpoint);
        talk(&known[i]);
    }
    CHECK_INT(pipe(told), 0);
    plan.strangers_at = (size_t)highest_open() + 30;
    plan.descriptors_max = plan.strangers_at + 30;
    CHECK_INT(kn_gate_set(&plan), 0);

    pid_t pid = strangers(port, told[1]);
    CHECK_INT(read(told[0], &byte, 1), 1);
    uint64_t end = kn_clock_ms() + PATIENCE_MS;
    while (kn_gate_counts().put_out + kn_gate_counts().refused < STRANGERS / 2 && kn_clock_ms() < end) turn();
    CHECK(kn_gate_counts().put_out + kn_gate_counts().refused >= STRANGERS / 2);
    /* One may just be between accept4() and its end, and the list of them takes a number itself. */
    int highest = highest_open();
    CHECK_MSG((size_t)highest <= plan.descriptors_max + 1, "%d of %zu", highest, plan.descriptors_max);
    for (int i = 0; i < KNOWN; i++) talk(&known[i]);
    for (int i = 0; i < KNOWN; i++) CHECK_INT(known[i].ended, 0);
    join(&late, endpoint); /* one that comes now is let in beside them */
    talk(&late);

    /* Until it had spoken it was a stranger too, and may have been put out and come back. */
    int ended = late.ended;
    kn_sock_destroy(router.s); /* who loses its connection is told */
    for (end = kn_clock_ms() + PATIENCE_MS; late.ended == ended && kn_clock_ms() < end;) turn();
    CHECK_INT(late.ended, ended + 1);
    kill(pid, SIGKILL);
    for (int i = 0; i < KNOWN; i++) kn_sock_destroy(known[i].s);
    kn_sock_destroy(late.s);
    uv_run(&loop, UV_RUN_DEFAULT);
    CHECK_INT(uv_loop_close(&loop), 0);
    kn_wire_destroy(wire);
}

TEST(promise_connections_are_shared_out_below_the_limit_of_open_files) {
    static const size_t limits[] = {16, 256, 1024, 4096, 65536, 1 << 20, SIZE_MAX};
    size_t before = 0;
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        struct kn_gate_plan p = kn_gate_plan(limits[i]);
        CHECK(p.descriptors_max > 0 && p.descriptors_max < limits[i]);
        CHECK(p.strangers_at <= p.descriptors_max);
        CHECK(2 * p.workers <= p.strangers_at && p.workers >= before);
        before = p.workers;
    }
    CHECK_U64(kn_gate_plan(65536).workers, KN_WORKERS_MAX);
}
