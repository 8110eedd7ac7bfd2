/* A client whose coordinator is away: it sleeps. */
#include <signal.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/talk/client.h"
#include "proto/wire.h"
#include "tests/unit/check.h"

/* The program's own symbol comes before libc's in the libraries that it loads: libuv calls this one. */
static unsigned waits; /* of the thread that is counted: ZeroMQ has one of its own */
static _Thread_local bool counted;

int epoll_wait(int fd, struct epoll_event *events, int max, int timeout) {
    if (counted) waits++;
    return (int)syscall(SYS_epoll_wait, fd, events, max, timeout);
}

int epoll_pwait(int fd, struct epoll_event *events, int max, int timeout, const sigset_t *mask) {
    if (counted) waits++;
    return (int)syscall(SYS_epoll_pwait, fd, events, max, timeout, mask, sizeof(uint64_t));
}

/* ---- a coordinator of before features: it lists none in its welcome */

static void on_hello(struct kn_sock *s, void *ctx, const struct kn_peer *peer, struct kn_msg *m,
                     struct kn_blob *blob) {
    struct kn_msg w = {.type = KN_MSG_WELCOME, .request = m->request};
    (void)ctx;
    (void)blob;
    w.u.welcome =
        (struct kn_welcome){.term = 1, .heartbeat_ms = 1000, .silence_ms = 1000, .version = "kiln 0.1.0"};
    if (kn_sock_send(s, peer, &w, NULL, NULL) != 0) _exit(1);
    kn_msg_destroy(m);
}

static void be_a_coordinator(const char *endpoint) {
    uv_loop_t loop;
    struct kn_wire *wire;
    struct kn_sock *sock;
    struct kn_sock_options o = {.router = true, .recv = on_hello};
    if (uv_loop_init(&loop) || kn_wire_create(&loop, &wire, NULL) || kn_sock_create(wire, &o, &sock, NULL) ||
        kn_sock_bind(sock, endpoint, NULL, NULL))
        _exit(1);
    uv_run(&loop, UV_RUN_DEFAULT);
}

TEST(promise_versions_a_client_hands_in_nothing_that_the_coordinator_does_not_know) {
    struct client *c = NULL;
    struct kn_err err = {0};
    char endpoint[128];
    snprintf(endpoint, sizeof endpoint, "ipc:///tmp/kiln-old-farm-%d", (int)getpid());
    pid_t pid = fork();
    if (pid == 0) be_a_coordinator(endpoint);
    CHECK(pid > 0);
    for (int i = 0; i < 1000 && access(endpoint + 6, F_OK) != 0; i++) usleep(10000);
    int rc = client_open(endpoint, 10000, &c, &err);
    int before = rc ? rc : client_needs(c, KN_FEATURES_BEFORE, &err);
    int later = rc ? rc : client_needs(c, KN_FEATURES_BEFORE | KN_FEATURE_PARTS, &err);
    client_close(c);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    unlink(endpoint + 6);
    CHECK_INT(rc, 0);
    CHECK_INT(before, 0);
    CHECK_INT(later, KN_EUNSUPPORTED);
    CHECK_MSG(strstr(err.text, "(kiln 0.1.0) does not know chunks in several parts"), "%s", err.text);
    CHECK_MSG(strstr(err.text, "upgrade kiln-coordinator"), "%s", err.text);
}

TEST(a_client_sleeps_while_nobody_answers) {
    struct client *c = NULL;
    struct kn_err err = {0};
    char endpoint[128];
    snprintf(endpoint, sizeof endpoint, "ipc:///tmp/kiln-no-such-farm-%d", (int)getpid());
    counted = true;
    CHECK_INT(client_open(endpoint, 3000, &c, &err), KN_ETIMEOUT);
    counted = false;
    /* 20 ticks in the first second, 4 in each later one, and two for each of the few tries to send. What made it
     * spin before was thousands. */
    CHECK_MSG(waits > 5, "%u: the waits are not counted", waits);
    CHECK_MSG(waits < 120, "%u waits in three seconds", waits);
    CHECK(strstr(err.text, "no coordinator listens there") != NULL);
}
