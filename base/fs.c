/* Files; the contract is fs.h. */
#include "base/fs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/limits.h"

#define FS_READ_STEP 65536
#define FS_NAMES_TRIED 100

static int fs_fail(struct kn_err *err, const char *path, const char *doing) {
    int code = errno == ENOENT || errno == ENOTDIR ? KN_ENOENT : KN_EIO;
    return kn_err_set(err, code, "%s: %s: %s", path, doing, strerror(errno));
}

static const char *kind_of(mode_t mode) {
    switch (mode & S_IFMT) {
    case S_IFDIR:
        return "a folder";
    case S_IFIFO:
        return "a FIFO or pipe";
    case S_IFSOCK:
        return "a socket";
    case S_IFCHR:
    case S_IFBLK:
        return "a device";
    default:
        return "something else";
    }
}

int kn_fs_open(const char *path, uint64_t bytes_max, int *fd, uint64_t *bytes, struct kn_err *err) {
    /* O_NONBLOCK: opening a FIFO that nobody writes to would block. Regular files know no such state. */
    int f = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat st;
    if (f < 0 && errno == ENXIO && stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return kn_err_set(err, KN_EIO, "%s: is %s, not a regular file", path, kind_of(st.st_mode));
    if (f < 0) return fs_fail(err, path, "open");
    int rc = KN_OK;
    if (fstat(f, &st) != 0)
        rc = fs_fail(err, path, "stat");
    else if (!S_ISREG(st.st_mode))
        rc = kn_err_set(err, KN_EIO, "%s: is %s, not a regular file", path, kind_of(st.st_mode));
    else if ((uint64_t)st.st_size > bytes_max)
        rc = kn_err_set(err, KN_ELIMIT, "%s: more than %llu bytes", path, (unsigned long long)bytes_max);
    if (rc) {
        close(f);
        return rc;
    }
    *fd = f;
    if (bytes) *bytes = (uint64_t)st.st_size;
    return KN_OK;
}

FILE *kn_fs_stream(const char *path, struct kn_err *err) {
    int fd;
    if (kn_fs_open(path, KN_FILE_BYTES_MAX, &fd, NULL, err)) return NULL;
    FILE *f = fdopen(fd, "r");
    if (!f) {
        (void)fs_fail(err, path, "open");
        close(fd);
    }
    return f;
}

/* Where a file's bytes go: one of the two. */
struct fs_sink {
    struct kn_buf *buf;
    struct kn_spill *spill;
};

static size_t fs_left(const struct fs_sink *k) {
    return k->buf ? k->buf->max - k->buf->len : k->spill->max - k->spill->len;
}

static int fs_room(const struct fs_sink *k, size_t bytes, void **at) {
    if (k->buf) return kn_buf_reserve(k->buf, bytes, at);
    int rc = kn_spill_reserve(k->spill, bytes);
    if (rc == KN_OK) *at = k->spill->data + k->spill->len;
    return rc;
}

static void fs_took(const struct fs_sink *k, size_t bytes) {
    if (!k->buf) {
        k->spill->len += bytes;
        kn_spill_rest(k->spill);
        return;
    }
    k->buf->len += bytes;
    k->buf->data[k->buf->len] = '\0';
}

static int read_all(const char *path, const struct fs_sink *out, struct kn_err *err) {
    bool standard_input = strcmp(path, "-") == 0;
    const char *name = standard_input ? "standard input" : path;
    size_t max = fs_left(out);
    int fd = STDIN_FILENO, rc = KN_OK;
    if (!standard_input) rc = kn_fs_open(path, max, &fd, NULL, err);
    if (rc) return rc;
    for (;;) {
        /* The last step may be short of room: then one byte more than fits tells a file that ends from one
         * too long. */
        size_t room = fs_left(out) < FS_READ_STEP ? fs_left(out) : FS_READ_STEP;
        char probe;
        void *at = &probe;
        if (room > 0) {
            rc = fs_room(out, room, &at);
            if (rc) {
                kn_err_set(err, rc, "%s: %s", name, kn_err_words(rc));
                break;
            }
        }
        ssize_t got = read(fd, at, room > 0 ? room : 1);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            rc = fs_fail(err, name, "read");
            break;
        }
        if (got == 0) break;
        if (room == 0) {
            rc = kn_err_set(err, KN_ELIMIT, "%s: more than %zu bytes", name, max);
            break;
        }
        fs_took(out, (size_t)got);
    }
    if (!standard_input) close(fd);
    return rc;
}

int kn_fs_read(const char *path, struct kn_buf *out, struct kn_err *err) {
    size_t before = out->len;
    int rc = read_all(path, &(struct fs_sink){.buf = out}, err);
    if (rc) {
        out->len = before;
        if (out->data) out->data[before] = '\0';
    }
    return rc;
}

int kn_fs_read_long(const char *path, struct kn_spill *out, struct kn_err *err) {
    size_t before = out->len;
    int rc = read_all(path, &(struct fs_sink){.spill = out}, err);
    if (rc) out->len = before;
    return rc;
}

/* The folder that holds path, into out[KN_PATH_MAX]. */
static int fs_parent(const char *path, char *out) {
    const char *slash = strrchr(path, '/');
    size_t len = slash ? (size_t)(slash - path) : 0;
    if (!slash) {
        memcpy(out, ".", 2);
        return KN_OK;
    }
    if (len == 0) len = 1; /* "/x" is in "/" */
    if (len >= KN_PATH_MAX) return KN_ELIMIT;
    memcpy(out, path, len);
    out[len] = '\0';
    return KN_OK;
}

int kn_fs_sync_dir(const char *path, struct kn_err *err) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return fs_fail(err, path, "open");
    int rc = KN_OK;
    /* EINVAL: a file system that cannot sync a folder keeps its names by itself (some network and FUSE ones).
     */
    if (fsync(fd) != 0 && errno != EINVAL) rc = fs_fail(err, path, "fsync");
    close(fd);
    return rc;
}

int kn_fs_replace(const char *path, const void *data, size_t len, bool durable, struct kn_err *err) {
    char tmp[KN_PATH_MAX], dir[KN_PATH_MAX];
    int fd = -1;
    /* Not mkostemp, which makes 0600: the file gets the mode that the umask leaves, and there is no way to read
     * that but to set it, which is not safe with threads. */
    for (int tries = 0; fd < 0 && tries < FS_NAMES_TRIED; tries++) {
        uint32_t random;
        if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random)
            return fs_fail(err, path, "getrandom");
        int n = snprintf(tmp, sizeof tmp, "%s.tmp.%06x", path, random & 0xffffff);
        if (n < 0 || (size_t)n >= sizeof tmp || fs_parent(path, dir) != KN_OK)
            return kn_err_set(err, KN_ELIMIT, "a path is longer than %d bytes", KN_PATH_MAX - 1);
        fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
        if (fd < 0 && errno != EEXIST) break;
    }
    if (fd < 0) return fs_fail(err, tmp, "create");

    int rc = KN_OK;
    const char *p = data;
    for (size_t done = 0; rc == KN_OK && done < len;) {
        ssize_t put = write(fd, p + done, len - done);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0)
            rc = fs_fail(err, tmp, "write");
        else
            done += (size_t)put;
    }
    if (rc == KN_OK && durable && fsync(fd) != 0) rc = fs_fail(err, tmp, "fsync");
    if (close(fd) != 0 && rc == KN_OK) rc = fs_fail(err, tmp, "close");
    if (rc == KN_OK && rename(tmp, path) != 0) rc = fs_fail(err, path, "rename");
    if (rc) {
        unlink(tmp);
        return rc;
    }
    return durable ? kn_fs_sync_dir(dir, err) : KN_OK;
}

/* Deletes files of the folder whose names begin with prefix and go on with `digits` hex digits (0: with anything). */
static size_t remove_named(const char *dir, const char *prefix, size_t digits, uint64_t older_ms) {
    DIR *d = opendir(dir);
    struct dirent *e;
    size_t n = 0, len = strlen(prefix);
    while (d && (e = readdir(d))) {
        const char *rest = e->d_name + len;
        struct stat st;
        if (strncmp(e->d_name, prefix, len) != 0 ||
            (digits && (strlen(rest) != digits || strspn(rest, "0123456789abcdef") != digits)) ||
            fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode))
            continue;
        uint64_t now = kn_wall_ms(), then = (uint64_t)st.st_mtime * 1000;
        if (older_ms && (now < then || now - then < older_ms)) continue;
        n += unlinkat(dirfd(d), e->d_name, 0) == 0;
    }
    if (d) closedir(d);
    return n;
}

size_t kn_fs_remove_temps(const char *path, uint64_t older_ms) {
    char dir[KN_PATH_MAX], prefix[KN_PATH_MAX + 8];
    const char *slash = strrchr(path, '/');
    if (fs_parent(path, dir) != KN_OK) return 0;
    snprintf(prefix, sizeof prefix, "%s.tmp.", slash ? slash + 1 : path);
    return remove_named(dir, prefix, 6, older_ms);
}

size_t kn_fs_remove_prefixed(const char *dir, const char *prefix) {
    return remove_named(dir, prefix, 0, 0);
}

int kn_fs_mkdirs(const char *path, unsigned mode, struct kn_err *err) {
    char at[KN_PATH_MAX];
    size_t len = strlen(path);
    if (len == 0) return kn_err_set(err, KN_EINVAL, "an empty path");
    if (len >= sizeof at)
        return kn_err_set(err, KN_ELIMIT, "a path is longer than %d bytes", KN_PATH_MAX - 1);
    memcpy(at, path, len + 1);
    for (size_t i = 1; i <= len; i++) {
        if (at[i] != '/' && at[i] != '\0') continue;
        char kept = at[i];
        at[i] = '\0';
        if (mkdir(at, (mode_t)mode) != 0) {
            struct stat st;
            int why = errno;
            if (why == EEXIST && stat(at, &st) == 0) why = S_ISDIR(st.st_mode) ? 0 : ENOTDIR;
            if (why) {
                errno = why;
                return kn_err_set(err, KN_EIO, "%s: mkdir: %s", at, strerror(why));
            }
        }
        at[i] = kept;
    }
    return KN_OK;
}

int kn_fs_join(char *out, size_t out_max, const char *a, const char *b) {
    size_t la = strlen(a);
    const char *slash = la > 0 && a[la - 1] == '/' ? "" : "/";
    int n = snprintf(out, out_max, "%s%s%s", a, slash, b);
    return n < 0 || (size_t)n >= out_max ? KN_ELIMIT : KN_OK;
}

bool kn_fs_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

size_t kn_fs_files_max(bool raise) {
    struct rlimit r, most;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0) return 0;
    most = (struct rlimit){r.rlim_max, r.rlim_max};
    if (raise && setrlimit(RLIMIT_NOFILE, &most) == 0) r = most;
    return r.rlim_cur == RLIM_INFINITY ? SIZE_MAX : (size_t)r.rlim_cur;
}

void kn_fs_standard(void) {
    int fd;
    do fd = open("/dev/null", O_RDWR); /* the lowest number that is free */
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0) close(fd);
}
