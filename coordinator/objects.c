/* See objects.h. */
#include "coordinator/objects.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/limits.h"
#include "base/log.h"

#define NAME_MAX_OBJECT 80 /* "ab/<64 hex>.png" */

struct objects {
    int dir_fd, incoming_fd, trash_fd;
    uint64_t term;
    atomic_uint_fast64_t serial;
};

void (*objects_switch)(const char *call);

static void at_switch(const char *call) {
    if (objects_switch) objects_switch(call);
}

static void object_name(const uint8_t sha256[KN_SHA256_BYTES], char out[NAME_MAX_OBJECT]) {
    char hex[KN_SHA256_HEX];
    kn_hex(sha256, KN_SHA256_BYTES, hex);
    snprintf(out, NAME_MAX_OBJECT, "%.2s/%s.png", hex, hex);
}

void objects_path(const char *dir, const uint8_t sha256[KN_SHA256_BYTES], char out[KN_PATH_MAX]) {
    char name[NAME_MAX_OBJECT];
    object_name(sha256, name);
    int n = snprintf(out, KN_PATH_MAX, "%s/%s", dir, name);
    assert(n > 0 && n < KN_PATH_MAX);
}

/* "TERM-SERIAL", which no file has had before. */
static int fresh_name(struct objects *o, char *out, size_t max) {
    return snprintf(out, max, "%llu-%llu", (unsigned long long)o->term,
                    (unsigned long long)atomic_fetch_add(&o->serial, 1));
}

/* ---- an object comes */

enum sameness { SAME, OTHER, UNREAD };

/* UNREAD: reading failed. */
static enum sameness compare_bytes(int fd, const void *data, size_t len) {
    char part[16384];
    size_t at = 0;
    ssize_t n;
    while ((n = read(fd, part, sizeof part)) > 0 && at + (size_t)n <= len &&
           memcmp(part, (const char *)data + at, (size_t)n) == 0)
        at += (size_t)n;
    return n < 0 ? UNREAD : n == 0 && at == len ? SAME : OTHER;
}

/* The bytes under the object's name beside these. UNREAD: there is no such file, or nobody can say what is in it now. */
static enum sameness compare_object(struct objects *o, const uint8_t sha256[KN_SHA256_BYTES],
                                    const void *data, size_t len) {
    char name[NAME_MAX_OBJECT];
    struct stat st;
    object_name(sha256, name);
    int fd = openat(o->dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return errno == ELOOP ? OTHER : UNREAD;
    enum sameness b = fstat(fd, &st) != 0                                 ? UNREAD
                      : !S_ISREG(st.st_mode) || (size_t)st.st_size != len ? OTHER
                                                                          : compare_bytes(fd, data, len);
    close(fd);
    return b;
}

bool objects_has(struct objects *o, const uint8_t sha256[KN_SHA256_BYTES], const void *data, size_t len) {
    return compare_object(o, sha256, data, len) == SAME;
}

void objects_drop(struct objects *o, const char *name) {
    unlinkat(o->incoming_fd, name, 0);
}

int objects_write(struct objects *o, const void *data, size_t len, bool sync, char name[OBJECTS_NAME_MAX],
                  const char **what) {
    fresh_name(o, name, OBJECTS_NAME_MAX);
    at_switch("create");
    /* Read-only: an object is the farm's only copy, and nobody edits it by mistake through a hard link. */
    int fd = openat(o->incoming_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
    *what = fd < 0 ? "create" : NULL;
    if (fd < 0) return KN_EIO;
    const char *p = data;
    for (size_t done = 0; !*what && done < len;) {
        ssize_t n = write(fd, p + done, len - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            *what = "write";
        else
            done += (size_t)n;
    }
    if (!*what && sync && fsync(fd) != 0) *what = "fsync";
    int why = errno;
    if (close(fd) != 0 && !*what) {
        why = errno;
        *what = "close";
    }
    if (!*what) return 0;
    objects_drop(o, name);
    errno = why;
    return KN_EIO;
}

/* Bytes under the object's name that are not the object stay, to be looked at. The object of a copy that
 * another thread has put there meanwhile is only linked once more. What cannot be read now is not called damaged. */
static void keep_aside(struct objects *o, const uint8_t sha256[KN_SHA256_BYTES], const void *data,
                       size_t len) {
    char name[NAME_MAX_OBJECT], hex[KN_SHA256_HEX], fresh[48], aside[OBJECTS_NAME_MAX + 16];
    object_name(sha256, name);
    if (compare_object(o, sha256, data, len) != OTHER) return;
    kn_hex(sha256, KN_SHA256_BYTES, hex);
    if (mkdirat(o->dir_fd, "damaged", 0755) != 0 && errno != EEXIST) return;
    fresh_name(o, fresh, sizeof fresh);
    snprintf(aside, sizeof aside, "damaged/%s-%s", hex, fresh);
    at_switch("aside");
    int rc = linkat(o->dir_fd, name, o->dir_fd, aside, 0);
    kn_warn("object_damaged file=%s kept=%s", name, rc == 0 ? aside : "");
}

int objects_arrive(struct objects *o, const char *name, const uint8_t sha256[KN_SHA256_BYTES],
                   const void *data, size_t len) {
    char to[NAME_MAX_OBJECT];
    object_name(sha256, to);
    keep_aside(o, sha256, data, len);
    at_switch("arrive");
    /* It may take the place of an object: both have the bytes of the digest, or that one was damaged. */
    if (renameat(o->incoming_fd, name, o->dir_fd, to) == 0) return 0;
    int why = errno;
    objects_drop(o, name);
    errno = why;
    return KN_EIO;
}

int objects_sync_root(struct objects *o) {
    return fsync(o->dir_fd) == 0 || errno == EINVAL ? 0 : KN_EIO;
}

int objects_sync_folder(struct objects *o, const uint8_t sha256[KN_SHA256_BYTES]) {
    char name[3];
    snprintf(name, sizeof name, "%02x", sha256[0]);
    int fd = openat(o->dir_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool ok = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL);
    int why = errno;
    if (fd >= 0) close(fd);
    errno = why;
    return ok ? 0 : KN_EIO;
}

int objects_sync_all(struct objects *o) {
    return syncfs(o->dir_fd) == 0 ? 0 : KN_EIO;
}

/* ---- an object is looked for */

/* Reads a file whole, and compares it with the digest. The caller frees *data on success. */
static int read_file(int dir_fd, const char *name, const uint8_t sha256[KN_SHA256_BYTES], void **data,
                     size_t *len) {
    struct stat st;
    uint8_t digest[KN_SHA256_BYTES];
    int rc = 0;
    *data = NULL;
    *len = 0;
    int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return errno == ENOENT ? KN_ENOENT : errno == ELOOP ? KN_ECORRUPT : KN_EIO;
    if (fstat(fd, &st) != 0)
        rc = KN_EIO;
    else if (!S_ISREG(st.st_mode) || st.st_size > KN_IMAGE_BYTES_MAX)
        rc = KN_ECORRUPT; /* no picture has ever been that */
    else if (!(*data = malloc((size_t)st.st_size + 1)))
        rc = KN_ENOMEM;
    while (rc == 0 && *len < (size_t)st.st_size) {
        ssize_t n = read(fd, (char *)*data + *len, (size_t)st.st_size - *len);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) rc = KN_EIO;
        if (n <= 0) break;
        *len += (size_t)n;
    }
    close(fd);
    if (rc == 0) {
        kn_sha256(*data, *len, digest);
        if (memcmp(digest, sha256, sizeof digest) != 0) rc = KN_ECORRUPT;
    }
    if (rc != 0) {
        free(*data);
        *data = NULL;
        *len = 0;
    }
    return rc;
}

int objects_read(struct objects *o, const uint8_t sha256[KN_SHA256_BYTES], void **data, size_t *len,
                 bool *restored) {
    char name[NAME_MAX_OBJECT];
    object_name(sha256, name);
    *restored = false;
    int rc = read_file(o->dir_fd, name, sha256, data, len);
    if (rc != KN_ENOENT || objects_restore(o, sha256) != 0) return rc;
    *restored = true;
    return read_file(o->dir_fd, name, sha256, data, len);
}

int objects_look(struct objects *o, const uint8_t sha256[KN_SHA256_BYTES], bool *restored) {
    char name[NAME_MAX_OBJECT];
    struct stat st;
    object_name(sha256, name);
    *restored = false;
    if (fstatat(o->dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0) {
        if (errno != ENOENT) return KN_EIO;
        *restored = objects_restore(o, sha256) == 0;
        return *restored ? 0 : KN_ENOENT;
    }
    return S_ISREG(st.st_mode) && st.st_size > 0 ? 0 : KN_ECORRUPT;
}

/* ---- the trash */

static void trash_folder(const uint8_t sha256[KN_SHA256_BYTES], char out[3]) {
    snprintf(out, 3, "%02x", sha256[0]);
}

int objects_trash(struct objects *o, const uint8_t sha256[KN_SHA256_BYTES], char name[OBJECTS_NAME_MAX]) {
    char from[NAME_MAX_OBJECT], to[OBJECTS_NAME_MAX + 4], folder[3], hex[KN_SHA256_HEX], fresh[48];
    object_name(sha256, from);
    trash_folder(sha256, folder);
    kn_hex(sha256, KN_SHA256_BYTES, hex);
    fresh_name(o, fresh, sizeof fresh);
    snprintf(name, OBJECTS_NAME_MAX, "%s-%s", fresh, hex);
    snprintf(to, sizeof to, "%s/%s", folder, name);
    at_switch("trash");
    if (renameat(o->dir_fd, from, o->trash_fd, to) == 0) return 0;
    if (errno == ENOENT && (mkdirat(o->trash_fd, folder, 0777) == 0 || errno == EEXIST) &&
        renameat(o->dir_fd, from, o->trash_fd, to) == 0)
        return 0;
    return errno == ENOENT ? KN_ENOENT : KN_EIO;
}

int objects_delete(struct objects *o, const uint8_t sha256[KN_SHA256_BYTES], const char *name) {
    char path[OBJECTS_NAME_MAX + 4], folder[3];
    trash_folder(sha256, folder);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    at_switch("delete");
    if (unlinkat(o->trash_fd, path, 0) == 0 || errno == ENOENT) return 0;
    return KN_EIO;
}

/* Gives a file of the trash its object's name, if its bytes are those and nothing has come to lie there. */
static int bring_back(struct objects *o, const char *path, const uint8_t sha256[KN_SHA256_BYTES]) {
    char to[NAME_MAX_OBJECT];
    void *data;
    size_t len;
    object_name(sha256, to);
    int rc = read_file(o->trash_fd, path, sha256, &data, &len);
    if (rc != 0) return rc;
    free(data);
    at_switch("restore");
    /* Not where a file system lacks the flag: then it may take the place of an object with the same bytes. */
    rc = renameat2(o->trash_fd, path, o->dir_fd, to, RENAME_NOREPLACE);
    if (rc != 0 && (errno == EINVAL || errno == ENOSYS)) rc = renameat(o->trash_fd, path, o->dir_fd, to);
    if (rc == 0) kn_debug("object_restored file=%s", to);
    return rc == 0 || errno == EEXIST ? 0 : errno == ENOENT ? KN_ENOENT : KN_EIO;
}

static DIR *open_folder(int parent, const char *name) {
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    if (!d && fd >= 0) close(fd);
    return d;
}

int objects_restore(struct objects *o, const uint8_t sha256[KN_SHA256_BYTES]) {
    char folder[3], hex[KN_SHA256_HEX], path[OBJECTS_NAME_MAX + 4];
    struct dirent *e;
    int rc = KN_ENOENT;
    trash_folder(sha256, folder);
    kn_hex(sha256, KN_SHA256_BYTES, hex);
    DIR *d = open_folder(o->trash_fd, folder);
    while (rc != 0 && d && (e = readdir(d))) {
        size_t len = strlen(e->d_name);
        if (len < KN_SHA256_HEX || len >= OBJECTS_NAME_MAX ||
            strcmp(e->d_name + len - (KN_SHA256_HEX - 1), hex) != 0)
            continue;
        snprintf(path, sizeof path, "%s/%.*s", folder, OBJECTS_NAME_MAX - 1, e->d_name);
        rc = bring_back(o, path, sha256);
    }
    if (d) closedir(d);
    return rc;
}

/* ---- all of them */

static bool digest_of(const char *hex, unsigned folder, uint8_t out[KN_SHA256_BYTES]) {
    char text[KN_SHA256_HEX];
    snprintf(text, sizeof text, "%.64s", hex);
    return strlen(text) == KN_SHA256_HEX - 1 && kn_unhex(text, out, KN_SHA256_BYTES) == 0 && out[0] == folder;
}

/* The digest that a file's name tells; false: kiln has not named it. */
static bool entry_named(const char *name, unsigned folder, bool trash, struct objects_entry *e) {
    unsigned long long term, serial;
    int at = 0;
    e->name[0] = 0;
    if (!trash) return digest_of(name, folder, e->sha256) && strcmp(name + KN_SHA256_HEX - 1, ".png") == 0;
    if (sscanf(name, "%llu-%llu-%n", &term, &serial, &at) != 2 || at == 0) return false;
    if (!digest_of(name + at, folder, e->sha256) || name[at + KN_SHA256_HEX - 1]) return false;
    return (size_t)snprintf(e->name, sizeof e->name, "%s", name) < sizeof e->name;
}

static uint64_t age_of(const struct timespec *t) {
    uint64_t now = kn_wall_ms(), then = (uint64_t)t->tv_sec * 1000 + (uint64_t)t->tv_nsec / 1000000;
    return now > then ? now - then : 0;
}

void objects_each(struct objects *o, unsigned folder, bool trash,
                  bool (*each)(void *ctx, const struct objects_entry *e), void *ctx, size_t *others) {
    char name[3];
    snprintf(name, sizeof name, "%02x", folder);
    DIR *d = open_folder(trash ? o->trash_fd : o->dir_fd, name);
    struct dirent *x;
    bool more = d != NULL;
    while (more && (x = readdir(d))) {
        struct objects_entry e;
        struct stat st;
        if (x->d_name[0] == '.') continue;
        if (!entry_named(x->d_name, folder, trash, &e)) {
            if (others) ++*others;
            continue;
        }
        if (fstatat(dirfd(d), x->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0) continue;
        e.age_ms = age_of(trash ? &st.st_ctim : &st.st_mtim);
        e.bytes = (uint64_t)st.st_size;
        more = each(ctx, &e);
    }
    if (d) closedir(d);
}

uint64_t objects_trash_changed(struct objects *o, unsigned folder) {
    char name[3];
    struct stat st;
    snprintf(name, sizeof name, "%02x", folder);
    if (fstatat(o->trash_fd, name, &st, 0) != 0) return 0;
    return (uint64_t)st.st_mtim.tv_sec * 1000000000u + (uint64_t)st.st_mtim.tv_nsec;
}

size_t objects_remove_strays(struct objects *o) {
    DIR *d = open_folder(o->incoming_fd, ".");
    struct dirent *e;
    size_t n = 0;
    while (d && (e = readdir(d))) {
        unsigned long long term = 0, serial;
        if (e->d_name[0] == '.') continue;
        /* Files of this term are being written; a later term's are not ours to touch. Earlier programs named
         * them by the serial alone. */
        if (sscanf(e->d_name, "%llu-%llu", &term, &serial) == 2 && term >= o->term) continue;
        at_switch("stray");
        n += unlinkat(o->incoming_fd, e->d_name, 0) == 0;
    }
    if (d) closedir(d);
    return n;
}

/* ---- life */

static int open_dir(const char *path, struct kn_err *err) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? kn_err_set(err, KN_EIO, "%s: %s", path, strerror(errno)) : fd;
}

static int make_folders(int parent, const char *where, struct kn_err *err) {
    for (unsigned i = 0; i < OBJECTS_FOLDERS; i++) {
        char name[3];
        snprintf(name, sizeof name, "%02x", i);
        if (mkdirat(parent, name, 0777) != 0 && errno != EEXIST)
            return kn_err_set(err, KN_EIO, "%s/%s: %s", where, name, strerror(errno));
    }
    return 0;
}

int objects_open(const char *dir, uint64_t term, struct objects **out, struct kn_err *err) {
    char incoming[KN_PATH_MAX], trash[KN_PATH_MAX];
    if (strlen(dir) > KN_PATH_MAX - 200) return kn_err_set(err, KN_ELIMIT, "%.200s: too long", dir);
    snprintf(incoming, sizeof incoming, "%.3890s/incoming", dir);
    snprintf(trash, sizeof trash, "%.3890s/trash", dir);
    int rc = kn_fs_mkdirs(incoming, 0777, err);
    if (rc == 0) rc = kn_fs_mkdirs(trash, 0777, err);
    if (rc != 0) return rc;
    struct objects *o = calloc(1, sizeof *o);
    if (!o) return kn_err_set(err, KN_ENOMEM, "objects: out of memory");
    o->term = term;
    o->dir_fd = o->incoming_fd = o->trash_fd = -1;
    if ((o->dir_fd = open_dir(dir, err)) < 0 || (o->incoming_fd = open_dir(incoming, err)) < 0 ||
        (o->trash_fd = open_dir(trash, err)) < 0)
        rc = KN_EIO;
    if (rc == 0) rc = make_folders(o->dir_fd, dir, err);
    if (rc != 0) {
        objects_close(o);
        return rc;
    }
    *out = o;
    return 0;
}

void objects_close(struct objects *o) {
    if (!o) return;
    if (o->dir_fd >= 0) close(o->dir_fd);
    if (o->incoming_fd >= 0) close(o->incoming_fd);
    if (o->trash_fd >= 0) close(o->trash_fd);
    free(o);
}
