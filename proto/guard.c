/* See guard.h. The protocol is ZeroMQ's ZAP (RFC 27): a request of seven frames, an answer of six. */
#include "proto/guard.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "base/hash.h"
#include "base/log.h"

#define ZAP_ENDPOINT "inproc://zeromq.zap.01"
#define ZAP_VERSION "1.0"
#define FRAME_BYTES_MAX 255

enum { F_VERSION, F_REQUEST, F_DOMAIN, F_ADDRESS, F_ROUTING, F_MECHANISM, F_KEY, FRAMES };

struct frame {
    size_t len;
    char text[FRAME_BYTES_MAX + 1];
};

struct kn_guard {
    kn_guard_admit admit;
    void *ctx;
    void *z;         /* owns */
    uv_poll_t *poll; /* owns */
};

/* The frames of one request, with a 0 behind each; what is too many or too long is thrown away. Returns their number, -1:
 * there is no request. */
static int receive(struct kn_guard *g, struct frame f[FRAMES]) {
    for (int n = 0;; n++) {
        zmq_msg_t m;
        int rc;
        zmq_msg_init(&m);
        while ((rc = zmq_msg_recv(&m, g->z, ZMQ_DONTWAIT)) < 0 && errno == EINTR) {
        }
        if (rc < 0) {
            zmq_msg_close(&m);
            return -1;
        }
        bool more = zmq_msg_more(&m);
        if (n < FRAMES) {
            f[n].len = zmq_msg_size(&m) <= FRAME_BYTES_MAX ? zmq_msg_size(&m) : 0;
            memcpy(f[n].text, zmq_msg_data(&m), f[n].len);
            f[n].text[f[n].len] = '\0';
        }
        zmq_msg_close(&m);
        if (!more) return n + 1;
    }
}

static void say(struct kn_guard *g, const void *data, size_t len, int flags) {
    while (zmq_send(g->z, data, len, flags | ZMQ_DONTWAIT) < 0 && errno == EINTR) {
    }
}

static void answer(struct kn_guard *g, const struct frame *request, bool in, const char *user) {
    const char *code = in ? "200" : "400", *text = in ? "OK" : "unknown key";
    say(g, ZAP_VERSION, strlen(ZAP_VERSION), ZMQ_SNDMORE);
    say(g, request->text, request->len, ZMQ_SNDMORE);
    say(g, code, strlen(code), ZMQ_SNDMORE);
    say(g, text, strlen(text), ZMQ_SNDMORE);
    say(g, user, strlen(user), ZMQ_SNDMORE);
    say(g, "", 0, 0);
}

const char *kn_guard_plain(const char *address) {
    static const char mapped[] = "::ffff:";
    return strncmp(address, mapped, sizeof mapped - 1) == 0 && strchr(address, '.')
               ? address + sizeof mapped - 1
               : address;
}

static void decide(struct kn_guard *g, const struct frame f[FRAMES], int n) {
    struct kn_public_key key;
    char user[2 * KN_KEY_BYTES + 1] = "", name[KN_FINGERPRINT_TEXT] = "none";
    const char *address = kn_guard_plain(f[F_ADDRESS].text);
    bool in = false, sound = n >= F_KEY && strcmp(f[F_VERSION].text, ZAP_VERSION) == 0;
    if (sound && strcmp(f[F_DOMAIN].text, KN_GUARD_UNIX) == 0) {
        in = strcmp(f[F_MECHANISM].text, "NULL") == 0;
    } else if (sound && n == FRAMES && strcmp(f[F_MECHANISM].text, "CURVE") == 0 &&
               f[F_KEY].len == KN_KEY_BYTES) {
        memcpy(key.bytes, f[F_KEY].text, KN_KEY_BYTES);
        kn_fingerprint(&key, name);
        in = g->admit(g->ctx, &key, address);
        if (in) kn_hex(key.bytes, KN_KEY_BYTES, user);
    }
    if (!in)
        kn_warn_of(kn_hash64(address, strlen(address), 0), "key_refused address=%s key=%s", address, name);
    answer(g, &f[F_REQUEST], in, user);
}

static void work(struct kn_guard *g) {
    struct frame f[FRAMES];
    for (;;) {
        memset(f, 0, sizeof f);
        int n = receive(g, f);
        if (n < 0) return;
        decide(g, f, n);
    }
}

static void on_readable(uv_poll_t *h, int status, int events) {
    (void)status;
    (void)events;
    work(h->data);
}

static void on_poll_closed(uv_handle_t *h) {
    free(h);
}

int kn_guard_create(uv_loop_t *loop, void *zmq_ctx, kn_guard_admit admit, void *ctx, struct kn_guard **out,
                    struct kn_err *err) {
    struct kn_guard *g = calloc(1, sizeof *g);
    int fd = -1, linger = 0;
    size_t len = sizeof fd;
    if (!g) return kn_err_set(err, KN_ENOMEM, "guard: out of memory");
    g->admit = admit;
    g->ctx = ctx;
    g->poll = malloc(sizeof *g->poll);
    g->z = g->poll ? zmq_socket(zmq_ctx, ZMQ_REP) : NULL;
    if (!g->z || zmq_setsockopt(g->z, ZMQ_LINGER, &linger, sizeof linger) != 0 ||
        zmq_bind(g->z, ZAP_ENDPOINT) != 0 || zmq_getsockopt(g->z, ZMQ_FD, &fd, &len) != 0 ||
        uv_poll_init(loop, g->poll, fd) != 0) {
        int rc = kn_err_set(err, KN_EIO, "guard: %s", zmq_strerror(errno));
        if (g->z) zmq_close(g->z);
        free(g->poll);
        free(g);
        return rc;
    }
    g->poll->data = g;
    uv_poll_start(g->poll, UV_READABLE, on_readable);
    work(g); /* its descriptor tells of changes alone */
    *out = g;
    return 0;
}

void kn_guard_destroy(struct kn_guard *g) {
    if (!g) return;
    uv_close((uv_handle_t *)g->poll, on_poll_closed); /* leaves epoll at once, so the descriptor may go */
    zmq_close(g->z);
    free(g);
}
