/* Frames between the worker and its engine's child. See engine_shared.h. */
#include "worker/engine_shared.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SMALL_FRAME 2048 /* goes out with one call */

static int send_whole(int fd, const void *data, size_t len) {
    for (size_t done = 0; done < len;) {
        ssize_t n = send(fd, (const char *)data + done, len - done, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return KN_EGONE;
        done += (size_t)n;
    }
    return 0;
}

int frame_send(int fd, enum engine_frame_type type, const void *head, size_t head_len, const void *body,
               size_t body_len) {
    struct engine_frame f = {type, (uint32_t)(head_len + body_len)};
    char small[SMALL_FRAME];
    size_t len = sizeof f + head_len;
    if (len > sizeof small) return KN_ELIMIT;
    memcpy(small, &f, sizeof f);
    if (head_len) memcpy(small + sizeof f, head, head_len);
    bool whole = body_len && len + body_len <= sizeof small;
    if (whole) memcpy(small + len, body, body_len);
    int rc = send_whole(fd, small, len + (whole ? body_len : 0));
    return rc || whole ? rc : send_whole(fd, body, body_len);
}

static int read_whole(int fd, void *to, size_t len) {
    for (size_t done = 0; done < len;) {
        ssize_t n = read(fd, (char *)to + done, len - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return KN_EGONE;
        done += (size_t)n;
    }
    return 0;
}

int frame_receive(int fd, enum engine_frame_type *type, struct kn_buf *body) {
    struct engine_frame f;
    void *to;
    kn_buf_clear(body);
    int rc = read_whole(fd, &f, sizeof f);
    if (rc) return rc;
    if (f.type < FRAME_OPEN || f.type > FRAME_KICK || f.len > FRAME_BODY_MAX) return KN_EGONE;
    *type = (enum engine_frame_type)f.type;
    if (f.len == 0) return 0;
    rc = kn_buf_reserve(body, f.len, &to);
    if (!rc) rc = read_whole(fd, to, f.len);
    if (!rc) body->len = f.len;
    return rc;
}

int place_bind(const char *kind, const char *place) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int len = snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "kiln-%s-%u-%.48s", kind,
                       (unsigned)getuid(), place);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)len);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (const struct sockaddr *)&name, size) == 0) return fd;
    int why = errno;
    close(fd);
    errno = why;
    return -1;
}
