/* See redis_tls.h. A thread owns its two sockets and its TLS session; it ends when either side has ended. */
#include "coordinator/store/redis_tls.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"

#define HANDSHAKE_S 5
#define PIECE_BYTES 65536

static struct {
    pthread_mutex_t lock;
    int code;
    char why[300];
} last = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void note(int code, const char *why) {
    pthread_mutex_lock(&last.lock);
    last.code = code;
    snprintf(last.why, sizeof last.why, "%s", why);
    pthread_mutex_unlock(&last.lock);
}

int redis_tls_why(char *out, size_t max) {
    pthread_mutex_lock(&last.lock);
    int code = last.code;
    snprintf(out, max, "%s", last.why);
    pthread_mutex_unlock(&last.lock);
    return code;
}

struct carrier {
    struct kn_redis_address to;
    int near, far; /* hiredis, the Redis */
    SSL_CTX *ctx;
    SSL *tls;
};

static bool connect_far(struct carrier *c, char *why, size_t max) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    struct timeval t = {.tv_sec = HANDSHAKE_S};
    char port[16];
    snprintf(port, sizeof port, "%d", c->to.port);
    int rc = getaddrinfo(c->to.host, port, &hints, &found);
    if (rc) snprintf(why, max, "%s", gai_strerror(rc));
    for (struct addrinfo *a = found; a && c->far < 0; a = a->ai_next) {
        int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
        if (fd < 0) continue;
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t); /* of connect() and of the handshake */
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
        if (connect(fd, a->ai_addr, a->ai_addrlen) == 0) {
            c->far = fd;
        } else {
            snprintf(why, max, "%s", strerror(errno));
            close(fd);
        }
    }
    if (found) freeaddrinfo(found);
    return c->far >= 0;
}

static bool is_number(const char *host) {
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST}, *found = NULL;
    bool yes = getaddrinfo(host, NULL, &hints, &found) == 0;
    if (found) freeaddrinfo(found);
    return yes;
}

static bool shake_hands(struct carrier *c, char *why, size_t max) {
    c->ctx = SSL_CTX_new(TLS_client_method());
    c->tls = c->ctx ? SSL_new(c->ctx) : NULL;
    snprintf(why, max, "TLS: out of memory");
    if (!c->tls || !SSL_CTX_set_min_proto_version(c->ctx, TLS1_2_VERSION) ||
        !SSL_CTX_set_default_verify_paths(c->ctx))
        return false;
    SSL_set_verify(c->tls, SSL_VERIFY_PEER, NULL);
    bool named = is_number(c->to.host)
                     ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(c->tls), c->to.host)
                     : SSL_set1_host(c->tls, c->to.host) && SSL_set_tlsext_host_name(c->tls, c->to.host);
    if (!named || !SSL_set_fd(c->tls, c->far)) return false;
    ERR_clear_error();
    if (SSL_connect(c->tls) == 1) return true;
    long verdict = SSL_get_verify_result(c->tls);
    const char *reason = ERR_reason_error_string(ERR_peek_error());
    if (verdict != X509_V_OK)
        snprintf(why, max, "its certificate is not taken: %s (SSL_CERT_FILE=FILE names the authority)",
                 X509_verify_cert_error_string(verdict));
    else
        snprintf(why, max, "no TLS handshake: %s", reason ? reason : "the connection ended");
    return false;
}

static bool write_all(int fd, const char *p, size_t len) {
    while (len > 0) {
        ssize_t n = send(fd, p, len, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        p += n;
        len -= (size_t)n;
    }
    return true;
}

/* The session's reads and writes do not block, the near side's writes do: hiredis always reads on. What it has written is
 * read only when all before it was taken, so that nothing piles up here. */
static void carry(struct carrier *c) {
    static const struct timeval forever = {0};
    char *up = malloc(PIECE_BYTES), *down = malloc(PIECE_BYTES);
    size_t held = 0, sent = 0; /* of `up` */
    setsockopt(c->far, SOL_SOCKET, SO_SNDTIMEO, &forever, sizeof forever);
    setsockopt(c->far, SOL_SOCKET, SO_RCVTIMEO, &forever, sizeof forever);
    fcntl(c->far, F_SETFL, fcntl(c->far, F_GETFL) | O_NONBLOCK);
    SSL_set_mode(c->tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    bool far_writable = true, alive = up && down;
    while (alive) {
        struct pollfd p[2] = {{.fd = c->far, .events = (short)(POLLIN | (far_writable ? 0 : POLLOUT))},
                              {.fd = c->near, .events = sent == held ? POLLIN : 0}};
        if (poll(p, 2, -1) < 0 && errno != EINTR) break;
        if (p[0].revents) {
            far_writable = true;
            for (;;) {
                int n = SSL_read(c->tls, down, PIECE_BYTES), why = n > 0 ? 0 : SSL_get_error(c->tls, n);
                if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) break;
                alive = n > 0 && write_all(c->near, down, (size_t)n);
                if (!alive) break;
            }
        }
        if (alive && sent == held && p[1].revents) {
            ssize_t n = recv(c->near, up, PIECE_BYTES, MSG_DONTWAIT);
            if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) break;
            held = n > 0 ? (size_t)n : 0;
            sent = 0;
        }
        while (alive && sent < held && far_writable) {
            int n = SSL_write(c->tls, up + sent, (int)(held - sent)),
                why = n > 0 ? 0 : SSL_get_error(c->tls, n);
            if (n > 0)
                sent += (size_t)n;
            else if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE)
                far_writable = false;
            else
                alive = false;
        }
    }
    free(up);
    free(down);
}

static void *run(void *data) {
    struct carrier *c = data;
    char why[300] = "no such host";
    if (connect_far(c, why, sizeof why) && shake_hands(c, why, sizeof why)) {
        note(0, "");
        carry(c);
        SSL_shutdown(c->tls);
    } else {
        kn_warn("redis_tls_failed error=\"%s\"", why);
        note(c->tls && SSL_get_verify_result(c->tls) != X509_V_OK ? KN_ECONFIG : KN_EAGAIN, why);
    }
    SSL_free(c->tls);
    SSL_CTX_free(c->ctx);
    if (c->far >= 0) close(c->far);
    close(c->near);
    free(c);
    return NULL;
}

int redis_tls_open(struct redis_tls_door *d, struct kn_err *err) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    *d = (struct redis_tls_door){.folder = "/tmp/kiln-tls-XXXXXX", .listener = -1};
    if (!mkdtemp(d->folder))
        return kn_err_set(err, KN_EIO, "Redis: TLS: /tmp: %s", strerror(errno)); /* 0700 */
    snprintf(d->path, sizeof d->path, "%s/redis", d->folder);
    snprintf(a.sun_path, sizeof a.sun_path, "%s", d->path);
    d->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (d->listener >= 0 && bind(d->listener, (struct sockaddr *)&a, sizeof a) == 0 &&
        listen(d->listener, 1) == 0)
        return KN_OK;
    int rc = kn_err_set(err, KN_EIO, "Redis: TLS: %s: %s", d->path, strerror(errno));
    if (d->listener >= 0) close(d->listener);
    unlink(d->path);
    rmdir(d->folder);
    return rc;
}

void redis_tls_close(struct redis_tls_door *d, const struct kn_redis_address *to) {
    struct carrier *c = calloc(1, sizeof *c);
    pthread_t thread;
    int near = accept4(d->listener, NULL, NULL, SOCK_CLOEXEC);
    close(d->listener);
    unlink(d->path);
    rmdir(d->folder);
    if (c && near >= 0) {
        *c = (struct carrier){.to = *to, .near = near, .far = -1};
        if (pthread_create(&thread, NULL, run, c) == 0) {
            pthread_detach(thread);
            return;
        }
    }
    if (near >= 0) close(near);
    free(c);
}
