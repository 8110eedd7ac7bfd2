/* See place.h. */
#include "cli/folder/place.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define PART (1u << 20)

void place_path(const struct folder *o, const char *prefix, size_t i, char out[PLACE_PATH_MAX]) {
    char file[FOLDER_FILE_MAX];
    if (prefix)
        snprintf(out, PLACE_PATH_MAX, "%s/%s%06zu", o->images, prefix, i);
    else
        snprintf(out, PLACE_PATH_MAX, "%s/%s", o->dir, folder_file(o, i, file));
}

bool place_is_intact(const char *path, const kn_digest sha256) {
    kn_digest now;
    struct stat st;
    return lstat(path, &st) == 0 && S_ISREG(st.st_mode) && kn_sha256_file(path, now, NULL) == KN_OK &&
           memcmp(now, sha256, sizeof now) == 0;
}

/* Renames and replaces nothing, but for a picture of kiln's own that a killed run left there. */
static int settle(const struct folder *o, size_t i, const char *from, struct kn_err *err) {
    char path[PLACE_PATH_MAX];
    place_path(o, NULL, i, path);
    int rc = 0;
    if (o->entries[i].loose) {
        rc = rename(from, path);
    } else {
        rc = renameat2(AT_FDCWD, from, AT_FDCWD, path, RENAME_NOREPLACE);
        if (rc && (errno == EINVAL || errno == ENOSYS)) { /* not on this file system: almost the same */
            struct stat st;
            errno = EEXIST;
            rc = lstat(path, &st) == 0 ? -1 : rename(from, path);
        }
    }
    if (rc == 0) return KN_OK;
    if (errno == EEXIST)
        return kn_err_set(err, KN_ESTATE, "%s: has come to lie there meanwhile, and is not kiln's", path);
    return kn_err_set(err, errno == EXDEV ? KN_EUNSUPPORTED : KN_EIO, "%s: %s", path, strerror(errno));
}

static int fail(const char *path, int fd, const char *fresh, struct kn_err *err) {
    int rc = kn_err_set(err, KN_EIO, "%s: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
    unlink(fresh);
    return rc;
}

static int write_all(int fd, const void *data, size_t len) {
    const char *p = data;
    while (len > 0) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

static int open_fresh(const struct folder *o, size_t i, char fresh[PLACE_PATH_MAX]) {
    place_path(o, PLACE_FRESH, i, fresh);
    unlink(fresh);
    return open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
}

/* Gives the picture its place, or takes it away again. */
static int finish(const struct folder *o, size_t i, int fd, const char *fresh, struct kn_err *err) {
    if (close(fd)) return fail(fresh, -1, fresh, err);
    int rc = settle(o, i, fresh, err);
    if (rc) unlink(fresh);
    return rc;
}

int place_data(const struct folder *o, size_t i, const void *data, size_t len, struct kn_err *err) {
    char fresh[PLACE_PATH_MAX];
    int fd = open_fresh(o, i, fresh);
    if (fd < 0) return kn_err_set(err, KN_EIO, "%s: %s", fresh, strerror(errno));
    if (write_all(fd, data, len)) return fail(fresh, fd, fresh, err);
    return finish(o, i, fd, fresh, err);
}

/* From the beginning of one file to that of another, empty one. */
static int copy_bytes(int from, int to) {
    static char part[PART];
    if (ioctl(to, FICLONE, from) == 0) return 0;
    ssize_t n;
    while ((n = copy_file_range(from, NULL, to, NULL, PART, 0)) > 0) {
    }
    if (n == 0 && lseek(from, 0, SEEK_CUR) > 0) return 0;
    /* Not between these two file systems, or (a file that copy_file_range sees as empty) not from this one. */
    if (lseek(from, 0, SEEK_SET) < 0 || lseek(to, 0, SEEK_SET) < 0) return -1;
    while ((n = read(from, part, sizeof part)) != 0) {
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 || write_all(to, part, (size_t)n)) return -1;
    }
    return 0;
}

int place_copy(const struct folder *o, size_t i, const char *from, struct kn_err *err) {
    char fresh[PLACE_PATH_MAX];
    int in = open(from, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (in < 0) return kn_err_set(err, KN_EIO, "%s: %s", from, strerror(errno));
    int fd = open_fresh(o, i, fresh);
    if (fd < 0 || copy_bytes(in, fd)) {
        int rc = fail(fresh, fd, fresh, err);
        close(in);
        return rc;
    }
    close(in);
    return finish(o, i, fd, fresh, err);
}

static int place_link(const struct folder *o, size_t i, const char *from, struct kn_err *err) {
    char fresh[PLACE_PATH_MAX];
    place_path(o, PLACE_FRESH, i, fresh);
    unlink(fresh);
    if (link(from, fresh)) return KN_EUNSUPPORTED;
    int rc = settle(o, i, fresh, err);
    if (rc) unlink(fresh);
    return rc;
}

static int place_moved(const struct folder *o, size_t i, const char *from, struct kn_err *err) {
    char path[PLACE_PATH_MAX];
    int rc = settle(o, i, from, err);
    if (rc) return rc;
    place_path(o, NULL, i, path);
    if (chmod(path, o->mode)) return kn_err_set(err, KN_EIO, "%s: %s", path, strerror(errno));
    return KN_OK;
}

int place_object(const struct folder *o, const char *objects_dir, size_t i, const kn_digest sha256,
                 struct kn_err *err) {
    char hex[KN_SHA256_HEX], from[KN_PATH_MAX + 80];
    if (!objects_dir[0]) return KN_ENOENT;
    kn_hex(sha256, KN_SHA256_BYTES, hex);
    snprintf(from, sizeof from, "%s/%.2s/%s.png", objects_dir, hex, hex);
    if (!place_is_intact(from, sha256)) return KN_ENOENT;
    int rc = o->placing == FOLDER_MOVE   ? place_moved(o, i, from, err)
             : o->placing == FOLDER_LINK ? place_link(o, i, from, err)
                                         : KN_EUNSUPPORTED;
    return rc == KN_EUNSUPPORTED ? place_copy(o, i, from, err) : rc;
}
