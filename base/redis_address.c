/* See redis_address.h. */
#include "base/redis_address.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/hash.h"

#define DEFAULT_PORT 6379
#define SOCKET_PATH_MAX 107
#define FILE_BYTES_MAX 4096
#define DB_MAX 1023

/* [p, end) with its %XX decoded. */
static bool decode(const char *p, const char *end, char *out, size_t max) {
    size_t n = 0;
    for (; p < end; p++) {
        uint8_t byte = (uint8_t)*p;
        if (*p == '%') {
            char hex[3] = "";
            if (end - p > 2) memcpy(hex, p + 1, 2);
            if (kn_unhex(hex, &byte, 1) || byte == 0) return false;
            p += 2;
        }
        if (n == max) return false;
        out[n++] = (char)byte;
    }
    out[n] = '\0';
    return true;
}

static bool read_port(const char *p, const char *end, int *out) {
    *out = 0;
    for (; p < end && *p >= '0' && *p <= '9' && *out <= 65535; p++) *out = *out * 10 + (*p - '0');
    return p == end && *out > 0 && *out <= 65535;
}

/* HOST:PORT, HOST, [ADDRESS]:PORT. */
static bool read_host(const char *p, const char *end, bool port_needed, struct kn_redis_address *out) {
    const char *colon = end, *host_end;
    while (colon > p && colon[-1] != ':' && colon[-1] != ']') colon--;
    bool port = colon > p && colon[-1] == ':';
    host_end = port ? colon - 1 : end;
    if (port_needed && !port) return false;
    if (port ? !read_port(colon, end, &out->port) : (out->port = DEFAULT_PORT, false)) return false;
    if (host_end - p > 2 && *p == '[' && host_end[-1] == ']') p++, host_end--;
    return host_end > p && !memchr(p, '/', (size_t)(host_end - p)) &&
           decode(p, host_end, out->host, KN_REDIS_HOST_MAX);
}

static bool read_path(const char *path, struct kn_redis_address *out) {
    size_t len = strlen(path);
    out->port = 0;
    if (len == 0 || len > SOCKET_PATH_MAX) return false;
    memcpy(out->host, path, len + 1);
    return true;
}

/* "USER:PASSWORD@" at p, if it is there; *p is then behind it. Redis' own "default" is who gives a password alone. */
static bool read_user(const char **p, struct kn_redis_address *out) {
    const char *at = strchr(*p, '@'), *slash = strchr(*p, '/');
    if (!at || (slash && slash < at)) return true;
    const char *colon = memchr(*p, ':', (size_t)(at - *p)), *user_end = colon ? colon : at;
    bool ok = decode(*p, user_end, out->user, KN_REDIS_USER_MAX) &&
              (!colon || decode(colon + 1, at, out->password, KN_REDIS_PASSWORD_MAX));
    *p = at + 1;
    return ok;
}

static bool parse(const char *text, struct kn_redis_address *out) {
    *out = (struct kn_redis_address){0};
    if (strncmp(text, "unix://", 7) == 0) {
        const char *p = text + 7;
        return read_user(&p, out) && read_path(p, out);
    }
    if (strncmp(text, "unix:", 5) == 0) return read_path(text + 5, out);
    out->tls = strncmp(text, "rediss://", 9) == 0;
    if (!out->tls && strncmp(text, "redis://", 8) != 0)
        return read_host(text, text + strlen(text), true, out);
    const char *p = strstr(text, "://") + 3, *end;
    if (!read_user(&p, out)) return false;
    end = p + strcspn(p, "/");
    if (!read_host(p, end, false, out)) return false;
    if (*end == '/' && end[1]) {
        char *stop;
        out->db = (int)strtoul(end + 1, &stop, 10);
        if (*stop || end[1] < '0' || end[1] > '9' || out->db > DB_MAX) return false;
    }
    return true;
}

static int read_file(const char *path, char out[FILE_BYTES_MAX + 1], bool *others, struct kn_err *err) {
    struct kn_buf b;
    struct stat st;
    int fd, rc = kn_fs_open(path, FILE_BYTES_MAX, &fd, NULL, err);
    if (rc) return rc;
    *others = fstat(fd, &st) != 0 || (st.st_mode & 077) != 0;
    close(fd);
    kn_buf_init(&b, FILE_BYTES_MAX);
    rc = kn_fs_read(path, &b, err);
    if (rc == KN_OK) {
        size_t n = b.data ? strcspn(b.data, "\r\n") : 0;
        memcpy(out, b.data ? b.data : "", n);
        out[n] = '\0';
        if (b.data) memset(b.data, 0, b.len);
    }
    kn_buf_fini(&b);
    return rc;
}

int kn_redis_address_read(const char *text, struct kn_redis_address *out, struct kn_err *err) {
    char line[FILE_BYTES_MAX + 1] = "";
    bool from_file = text[0] == '@', others = false;
    const char *name = from_file ? text + 1 : NULL;
    if (from_file) {
        int rc = read_file(name, line, &others, err);
        if (rc) return rc;
        text = line;
    }
    bool ok = parse(text, out);
    if (!ok && (from_file || strchr(text, '@')))
        kn_err_set(err, KN_EINVAL,
                   "%s: expected unix:/path, HOST:PORT or redis[s]://[USER:PASSWORD@]HOST[:PORT][/DB]",
                   from_file ? name : "an address with a '@' in it");
    else if (!ok)
        kn_err_set(err, KN_EINVAL, "%.100s: expected unix:/path, HOST:PORT or redis[s]://HOST[:PORT][/DB]",
                   text);
    memset(line, 0, sizeof line);
    if (!ok) return KN_EINVAL;
    if (out->password[0] && !from_file)
        return kn_err_set(
            err, KN_EINVAL,
            "a password on a command line can be read by everybody on this machine: put the address "
            "into a file (chmod 600 FILE) and say @FILE");
    if (out->password[0] && others)
        return kn_err_set(err, KN_EPERM, "%s: others may read it, and it holds a password: chmod 600 %s",
                          name, name);
    if (out->port == 0)
        snprintf(out->shown, sizeof out->shown, "unix:%s", out->host);
    else
        snprintf(out->shown, sizeof out->shown, "%s%s:%d", out->tls ? "rediss://" : "", out->host, out->port);
    return KN_OK;
}
