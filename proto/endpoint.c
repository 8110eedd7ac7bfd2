/* Endpoints, as a person writes them or a farm's folder names them. See wire.h. */
#include "base/buf.h"
#include "base/fs.h"
#include "proto/wire.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define IPC_PATH_MAX 107 /* sockaddr_un.sun_path less the terminating 0 */

static int checked(const char *text, char out[KN_ENDPOINT_MAX + 1], struct kn_err *err) {
    size_t len = strlen(text);
    if (len > KN_ENDPOINT_MAX)
        return kn_err_set(err, KN_ELIMIT, "endpoint: longer than %d bytes", KN_ENDPOINT_MAX);
    if (strncmp(text, "ipc://", 6) == 0) {
        if (len == 6) return kn_err_set(err, KN_EINVAL, "%s: no path", text);
        if (len - 6 > IPC_PATH_MAX)
            return kn_err_set(err, KN_ELIMIT, "%s: a socket's path is at most %d bytes", text, IPC_PATH_MAX);
    } else if (strncmp(text, "tcp://", 6) == 0) {
        const char *port = strrchr(text, ':');
        char *end;
        if (port == text + 3 || port == text + 6 || !port[1])
            return kn_err_set(err, KN_EINVAL, "%s: expected tcp://HOST:PORT", text);
        unsigned long n = strcmp(port + 1, "*") == 0 ? (end = "", 0ul) : strtoul(port + 1, &end, 10);
        if (*end || n > 65535 || port[1] == '-' || port[1] == '+')
            return kn_err_set(err, KN_EINVAL, "%s: the port is not a number up to 65535", text);
    } else {
        return kn_err_set(err, KN_EINVAL, "%s: expected tcp://HOST:PORT or ipc://PATH", text);
    }
    memcpy(out, text, len + 1);
    return 0;
}

int kn_endpoint_resolve(const char *text, char out[KN_ENDPOINT_MAX + 1], struct kn_err *err) {
    if (strstr(text, "://")) return checked(text, out, err);
    char path[KN_PATH_MAX];
    int rc = kn_fs_join(path, sizeof path, text, "endpoint");
    if (rc != 0) return kn_err_set(err, rc, "%s: path too long", text);
    struct kn_buf b;
    kn_buf_init(&b, KN_ENDPOINT_MAX + 2);
    rc = kn_fs_read(path, &b, err);
    if (rc == KN_ENOENT) kn_err_set(err, rc, "%s: no farm there (no file %s)", text, path);
    if (rc == 0) {
        char *line = b.data ? b.data : "";
        if (b.data) b.data[strcspn(b.data, "\r\n")] = 0;
        rc = checked(line, out, err);
        if (rc != 0) kn_err_prefix(err, "%s", path);
    }
    kn_buf_fini(&b);
    return rc;
}

int kn_endpoint_data(const char *control, const struct kn_welcome *w, char out[KN_ENDPOINT_MAX + 1],
                     struct kn_err *err) {
    if (strncmp(control, "ipc://", 6) == 0) {
        if (!w->data_ipc[0])
            return kn_err_set(err, KN_EPROTO, "the coordinator announced no data socket for %s", control);
        return checked(w->data_ipc, out, err);
    }
    if (w->data_port == 0)
        return kn_err_set(err, KN_EPROTO, "the coordinator announced no data port for %s", control);
    const char *port = strrchr(control, ':');
    int n = port ? snprintf(out, KN_ENDPOINT_MAX + 1, "%.*s:%u", (int)(port - control), control, w->data_port)
                 : -1;
    if (n < 0 || n > KN_ENDPOINT_MAX) return kn_err_set(err, KN_EINVAL, "%s: not a tcp endpoint", control);
    return 0;
}

bool kn_endpoint_is_loopback(const char *endpoint) {
    if (strncmp(endpoint, "ipc://", 6) == 0) return true;
    if (strncmp(endpoint, "tcp://", 6) != 0) return false;
    const char *host = endpoint + 6, *port = strrchr(host, ':');
    size_t len = port ? (size_t)(port - host) : strlen(host);
    char name[KN_ENDPOINT_MAX + 1];
    if (len > KN_ENDPOINT_MAX) return false;
    memcpy(name, host, len);
    name[len] = 0;
    struct in_addr a;
    if (inet_pton(AF_INET, name, &a) == 1) return ntohl(a.s_addr) >> 24 == 127;
    return strcmp(name, "localhost") == 0 || strcmp(name, "[::1]") == 0;
}

int kn_endpoint_look_up(const char *endpoint, struct kn_err *err) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    char host[KN_ENDPOINT_MAX + 1];
    if (strncmp(endpoint, "tcp://", 6) != 0) return 0;
    const char *name = endpoint + 6, *colon = strrchr(name, ':');
    size_t len = colon ? (size_t)(colon - name) : strlen(name);
    if (len > 2 && name[0] == '[' && name[len - 1] == ']') name++, len -= 2;
    snprintf(host, sizeof host, "%.*s", (int)len, name);
    int rc = getaddrinfo(host, NULL, &hints, &found);
    if (rc == 0) freeaddrinfo(found);
    if (rc == 0) return 0;
    return kn_err_set(
        err, rc == EAI_NONAME ? KN_ENOENT : KN_EAGAIN,
        "%s: the host \"%s\" cannot be found (%s): look at its spelling and at the name server, or give "
        "its address as numbers",
        endpoint, host, gai_strerror(rc));
}
