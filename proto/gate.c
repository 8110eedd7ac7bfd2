/* See gate.h. accept4() runs on ZeroMQ's one I/O thread, which is also the one that closes connections: while it looks
 * at one, that one is not closed and its number given to another. Elsewhere a connection is ended through a descriptor of
 * its own, once that one is known to be of the same socket. */
#include "proto/gate.h"

#include "base/clock.h"
#include "base/err.h"
#include "base/limits.h"

#include <assert.h>
#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define OWN_FILES 128      /* of the process beside connections: pictures that are written, the store, logs */
#define STRANGERS_MAX 1024 /* connections that have not spoken, when there is no more room */
#define STRANGERS_SHARE 4  /* …and at most this part of all */
#define CLIENTS 64         /* connections of commands that always fit */
#define SOCKETS_A_WORKER 2 /* control and data */
#define CONNECTIONS_MAX ((size_t)KN_WORKERS_MAX * SOCKETS_A_WORKER + STRANGERS_MAX + CLIENTS)
#define GREETING_BYTES 100 /* ZMTP's greeting has 64, and a handshake without keys more than twice as much */

struct newcomer {
    int fd;
    ino_t inode; /* of the socket: another one of that number has another */
    uint64_t came_ms;
    bool known, spoke; /* said something under a known key, or under another */
};

static struct {
    pthread_mutex_t lock;
    struct kn_gate_plan plan; /* descriptors_max 0: everybody is let in */
    struct newcomer *v;       /* a ring of those that may be silent still, the oldest first */
    size_t first, count, max;
    size_t *place; /* of the newest with that descriptor */
    bool guarded;
    struct kn_gate_counts counts;
} gate = {.lock = PTHREAD_MUTEX_INITIALIZER};

struct kn_gate_plan kn_gate_plan(size_t files_max) {
    size_t room = files_max > OWN_FILES ? files_max - OWN_FILES : 1;
    if (room > CONNECTIONS_MAX) room = CONNECTIONS_MAX;
    size_t strangers = room / STRANGERS_SHARE < STRANGERS_MAX ? room / STRANGERS_SHARE : STRANGERS_MAX;
    size_t known = room - strangers, workers = known > CLIENTS ? (known - CLIENTS) / SOCKETS_A_WORKER : 0;
    return (struct kn_gate_plan){.descriptors_max = room, .strangers_at = known, .workers = workers};
}

int kn_gate_set(const struct kn_gate_plan *plan) {
    struct newcomer *v = calloc(plan->descriptors_max, sizeof *v);
    size_t *place = calloc(plan->descriptors_max, sizeof *place);
    if (!v || !place) {
        free(v);
        free(place);
        return KN_ENOMEM;
    }
    pthread_mutex_lock(&gate.lock);
    free(gate.v);
    free(gate.place);
    gate.v = v;
    gate.place = place;
    gate.max = plan->descriptors_max;
    gate.first = gate.count = 0;
    gate.plan = *plan;
    pthread_mutex_unlock(&gate.lock);
    return 0;
}

struct kn_gate_counts kn_gate_counts(void) {
    pthread_mutex_lock(&gate.lock);
    struct kn_gate_counts counts = gate.counts;
    pthread_mutex_unlock(&gate.lock);
    return counts;
}

/* Unix sockets have file modes: who comes through one is no stranger. */
static bool is_tcp(int fd) {
    int domain = 0;
    socklen_t len = sizeof domain;
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 &&
           (domain == AF_INET || domain == AF_INET6);
}

static ino_t inode_of(int fd) {
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode) ? st.st_ino : 0;
}

static bool is_silent(const struct newcomer *n) {
    struct tcp_info info = {0};
    socklen_t len = sizeof info;
    if (gate.guarded) return !n->known && inode_of(n->fd) == n->inode;
    return inode_of(n->fd) == n->inode && getsockopt(n->fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 &&
           info.tcpi_bytes_received <= GREETING_BYTES;
}

static struct newcomer take_oldest(void) {
    struct newcomer n = gate.v[gate.first];
    gate.first = (gate.first + 1) % gate.max;
    gate.count--;
    return n;
}

/* From any thread: the number may be another connection's by now. */
static void end(const struct newcomer *n) {
    int fd = dup(n->fd);
    if (fd < 0) return;
    if (inode_of(fd) == n->inode) shutdown(fd, SHUT_RDWR);
    close(fd);
}

static void remember(int fd) {
    assert(gate.max > 0);         /* there is a plan */
    if (gate.count == gate.max) { /* more than can be open: the oldest has gone, most likely */
        struct newcomer n = take_oldest();
        if (gate.guarded && !n.known) end(&n);
    }
    size_t at = (gate.first + gate.count++) % gate.max;
    gate.v[at] = (struct newcomer){.fd = fd, .inode = inode_of(fd), .came_ms = kn_clock_ms()};
    gate.place[fd] = at;
}

/* Those before it have spoken or gone, and are not looked at again. ZeroMQ sees the end and closes the connection. */
static void put_out_oldest(void) {
    while (gate.count > 0) {
        struct newcomer n = take_oldest();
        if (!is_silent(&n)) continue;
        shutdown(n.fd, SHUT_RDWR);
        gate.counts.put_out++;
        return;
    }
}

void kn_gate_guarded(void) {
    pthread_mutex_lock(&gate.lock);
    gate.guarded = true;
    pthread_mutex_unlock(&gate.lock);
}

/* Who came over that descriptor last, if it is one of those that are watched. */
static struct newcomer *newcomer_of(int fd) {
    if (fd < 0 || (size_t)fd >= gate.max || gate.count == 0) return NULL;
    size_t at = gate.place[fd];
    bool listed = (at + gate.max - gate.first) % gate.max < gate.count;
    return listed && gate.v[at].fd == fd ? &gate.v[at] : NULL;
}

void kn_gate_keep(int fd) {
    pthread_mutex_lock(&gate.lock);
    struct newcomer *n = newcomer_of(fd);
    if (n) n->known = true;
    pthread_mutex_unlock(&gate.lock);
}

bool kn_gate_once(int fd) {
    pthread_mutex_lock(&gate.lock);
    struct newcomer *n = newcomer_of(fd), other = {.fd = fd, .inode = inode_of(fd)};
    bool first = gate.max == 0 || (n && !n->known && !n->spoke);
    if (first && n)
        n->spoke = true;
    else if (first)
        ; /* without a plan nothing is watched */
    else if (other.inode)
        end(&other); /* also one that was known, and is not any more */
    pthread_mutex_unlock(&gate.lock);
    return first;
}

void kn_gate_sweep(void) {
    uint64_t now = kn_clock_ms();
    pthread_mutex_lock(&gate.lock);
    while (gate.guarded && gate.count > 0 && now - gate.v[gate.first].came_ms > STRANGER_MS) {
        struct newcomer n = take_oldest();
        if (!n.known) end(&n);
    }
    pthread_mutex_unlock(&gate.lock);
}

/* True when the connection may stay. */
static bool let_in(int fd) {
    bool stays = (size_t)fd < gate.plan.descriptors_max;
    if (gate.plan.descriptors_max == 0) return true;
    if ((size_t)fd >= gate.plan.strangers_at) put_out_oldest();
    /* One for one would keep the number where it is, at the end of the room too, where every other newcomer is refused. */
    if ((size_t)fd >= (gate.plan.strangers_at + gate.plan.descriptors_max) / 2) put_out_oldest();
    if (!stays)
        gate.counts.refused++;
    else if (is_tcp(fd))
        remember(fd);
    return stays;
}

/* Takes the place of libc's: ZeroMQ calls it. It ends the process for an errno that it does not expect of a socket's kind;
 * ENFILE and ECONNABORTED it takes from all. */
int accept4(int listener, struct sockaddr *restrict address, socklen_t *restrict len, int flags) {
    int fd = (int)syscall(SYS_accept4, listener, address, len, flags);
    if (fd < 0) {
        if (errno == EMFILE) errno = ENFILE;
        return fd;
    }
    pthread_mutex_lock(&gate.lock);
    bool stays = let_in(fd);
    pthread_mutex_unlock(&gate.lock);
    if (stays) return fd;
    close(fd);
    errno = ECONNABORTED;
    return -1;
}
