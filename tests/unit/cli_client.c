/* A client whose coordinator is away: it sleeps. */
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cli/talk/client.h"
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
