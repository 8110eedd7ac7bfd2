/* See collect.h.
 *
 * Uploads wait in a list; up to GROUPS_MAX groups of them are worked on at once, each by one thread: check,
 * write, sync, rename, sync the folders. How to sync a group is a matter of cost, measured as it goes: fsync
 * of each file and folder, or one syncfs(2) for all of them, twice. On an ext4 disk with 1 KB files: 870/s
 * with fsync on four threads, several thousand with syncfs in groups of hundreds; but syncfs also waits for
 * what others wrote to the same file system. */
#include "coordinator/collect.h"

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
#include "base/log.h"
#include "base/map.h"

#define GROUPS_MAX 2
#define GROUP_ITEMS_MAX 512
#define GROUP_BYTES_MAX (32u << 20)
#define READS_MAX 256
#define DISCARD_A_TURN 256
#define DISCARD_LAST_MS 3000
#define DISCARD_MAX ((size_t)KN_TASKS_PER_BATCH_MAX * 4)

struct collect_item {
    struct collect_item *next;                  /* in its list: waiting, or the group's */
    struct collect_item *busy_next, *busy_prev; /* among all that are not done */
    uint8_t sha256[KN_SHA256_BYTES];
    struct kn_blob blob;
    collect_done done;
    void *ctx;
    int code;
    char why[160];
    char temp[32]; /* name in incoming/; "" when there is nothing to rename */
};

struct collect_group {
    uv_work_t work;
    struct collect *c;
    struct collect_item *first;
    size_t count, bytes;
    bool whole;       /* syncfs */
    uint64_t sync_us; /* how long the syncs took */
};

struct read {
    uv_work_t work;
    struct collect *c;
    uint8_t sha256[KN_SHA256_BYTES];
    collect_got got;
    void *ctx;
    int code;
    void *data;
    size_t len;
};

struct look {
    uv_work_t work;
    struct collect *c;
    struct collect_look *v; /* owns */
    size_t count;
    bool whole;
    collect_looked done;
    void *ctx;
};

struct collect {
    uv_loop_t *loop;
    uv_idle_t *later; /* owns; outlives this struct */
    char dir[KN_PATH_MAX];
    int dir_fd, incoming_fd;
    struct collect_item *first, *last; /* waiting */
    struct collect_item *busy;
    struct collect_item *held; /* their objects are being deleted */
    size_t waiting, count, bytes;
    int groups, reads;
    bool destroyed;
    atomic_bool synced;                   /* the folders' names are on disk */
    atomic_uint_fast64_t serial;          /* names files in incoming/ */
    uint64_t fsync_us, syncfs_us;         /* estimates: a file by itself, a whole group */
    struct kn_map *discard;               /* digest -> struct discard: to be deleted */
    uint8_t (*deleting)[KN_SHA256_BYTES]; /* owns: DISCARD_A_TURN of them; what a thread deletes now */
    size_t deleting_count;
    uv_work_t deletion;
    uint64_t end_ms; /* once destroyed: until then what is to be deleted still is */
};

void collect_path(const char *dir, const uint8_t sha256[KN_SHA256_BYTES], char out[KN_PATH_MAX]) {
    char hex[KN_SHA256_HEX];
    kn_hex(sha256, KN_SHA256_BYTES, hex);
    int n = snprintf(out, KN_PATH_MAX, "%s/%.2s/%s.png", dir, hex, hex);
    assert(n > 0 && n < KN_PATH_MAX);
}

static void name_of(const uint8_t sha256[KN_SHA256_BYTES], char out[80]) {
    char hex[KN_SHA256_HEX];
    kn_hex(sha256, KN_SHA256_BYTES, hex);
    snprintf(out, 80, "%.2s/%s.png", hex, hex);
}

/* ---- on a pool's thread */

static void item_fail(struct collect_item *i, int code, const char *what) {
    int why = errno;
    i->code = code;
    if (code == KN_EIO)
        snprintf(i->why, sizeof i->why, "%s: %s", what, strerror(why));
    else
        snprintf(i->why, sizeof i->why, "%s", what);
}

/* True if the object is there with exactly these bytes. */
static bool is_there(struct collect *c, const char *name, const struct kn_blob *b) {
    int fd = openat(c->dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct stat st;
    bool same = false;
    if (fd < 0) return false;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && (size_t)st.st_size == b->len) {
        char part[16384];
        size_t at = 0;
        ssize_t n;
        while ((n = read(fd, part, sizeof part)) > 0 && at + (size_t)n <= b->len &&
               memcmp(part, (const char *)b->data + at, (size_t)n) == 0)
            at += (size_t)n;
        same = n == 0 && at == b->len;
    }
    close(fd);
    return same;
}

static void write_item(struct collect *c, struct collect_item *i, bool sync) {
    uint8_t digest[KN_SHA256_BYTES];
    char name[80];
    kn_sha256(i->blob.data, i->blob.len, digest);
    if (memcmp(digest, i->sha256, sizeof digest) != 0) {
        item_fail(i, KN_ECORRUPT, "the bytes are not those of the digest");
        return;
    }
    name_of(i->sha256, name);
    if (is_there(c, name, &i->blob)) return;
    snprintf(i->temp, sizeof i->temp, "%llu", (unsigned long long)atomic_fetch_add(&c->serial, 1));
    /* Read-only: an object is the farm's only copy, and nobody edits it by mistake through a hard link. */
    int fd = openat(c->incoming_fd, i->temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
    if (fd < 0) {
        item_fail(i, KN_EIO, "create");
        i->temp[0] = 0;
        return;
    }
    const char *p = i->blob.data;
    for (size_t done = 0; i->code == 0 && done < i->blob.len;) {
        ssize_t n = write(fd, p + done, i->blob.len - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            item_fail(i, KN_EIO, "write");
        else
            done += (size_t)n;
    }
    if (i->code == 0 && sync && fsync(fd) != 0) item_fail(i, KN_EIO, "fsync");
    if (close(fd) != 0 && i->code == 0) item_fail(i, KN_EIO, "close");
}

/* What lies under the object's name and is not the object: it stays to be looked at. The bytes of a copy that
 * another thread has put there meanwhile are only linked once more. */
static void keep_aside(struct collect *c, const struct collect_item *i, const char *name) {
    char hex[KN_SHA256_HEX], aside[KN_SHA256_HEX + 80];
    struct stat st;
    if (fstatat(c->dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0 || is_there(c, name, &i->blob)) return;
    kn_hex(i->sha256, KN_SHA256_BYTES, hex);
    if (mkdirat(c->dir_fd, "damaged", 0755) != 0 && errno != EEXIST) return;
    snprintf(aside, sizeof aside, "damaged/%s-%lld-%s", hex, (long long)kn_wall_ms(), i->temp);
    int rc = linkat(c->dir_fd, name, c->dir_fd, aside, 0);
    kn_warn("object_damaged file=%s kept=%s", name, rc == 0 ? aside : "");
}

static void rename_item(struct collect *c, struct collect_item *i) {
    char name[80];
    if (i->code != 0 || !i->temp[0]) {
        if (i->temp[0]) unlinkat(c->incoming_fd, i->temp, 0);
        return;
    }
    name_of(i->sha256, name);
    keep_aside(c, i, name);
    if (renameat(c->incoming_fd, i->temp, c->dir_fd, name) != 0) {
        item_fail(i, KN_EIO, "rename");
        unlinkat(c->incoming_fd, i->temp, 0);
    }
}

static void fail_all(struct collect_group *g, const char *what) {
    for (struct collect_item *i = g->first; i; i = i->next)
        if (i->code == 0) item_fail(i, KN_EIO, what);
}

/* Also for objects that were there already: another thread may have renamed them and not synced yet. */
static void sync_folders(struct collect_group *g) {
    bool done[256] = {false};
    if (!atomic_load(&g->c->synced)) {
        if (fsync(g->c->dir_fd) != 0 && errno != EINVAL) {
            fail_all(g, "fsync of the objects' folder");
            return;
        }
        atomic_store(&g->c->synced, true);
    }
    for (struct collect_item *i = g->first; i; i = i->next) {
        char name[3];
        if (i->code != 0 || done[i->sha256[0]]) continue;
        snprintf(name, sizeof name, "%02x", i->sha256[0]);
        int fd = openat(g->c->dir_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        bool ok = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL);
        int why = errno;
        if (fd >= 0) close(fd);
        done[i->sha256[0]] = true;
        for (struct collect_item *k = i; !ok && k; k = k->next) {
            errno = why;
            if (k->code == 0 && k->sha256[0] == i->sha256[0]) item_fail(k, KN_EIO, "fsync of the folder");
        }
    }
}

static void on_group(uv_work_t *work) {
    struct collect_group *g = work->data;
    struct collect *c = g->c;
    for (struct collect_item *i = g->first; i; i = i->next) {
        uint64_t t = kn_clock_us();
        write_item(c, i, !g->whole);
        if (!g->whole) g->sync_us += kn_clock_us() - t;
    }
    uint64_t t = kn_clock_us();
    if (g->whole && syncfs(c->dir_fd) != 0) fail_all(g, "syncfs");
    uint64_t first = kn_clock_us() - t;
    for (struct collect_item *i = g->first; i; i = i->next) rename_item(c, i);
    t = kn_clock_us();
    if (g->whole) {
        if (syncfs(c->dir_fd) != 0) fail_all(g, "syncfs");
    } else {
        sync_folders(g);
    }
    g->sync_us += first + (kn_clock_us() - t);
}

/* Reads an object whole, and compares it with its digest. The caller frees *data on success. */
static int read_object(struct collect *c, const uint8_t sha256[KN_SHA256_BYTES], void **data, size_t *len) {
    char name[80];
    struct stat st;
    uint8_t digest[KN_SHA256_BYTES];
    int rc = 0;
    name_of(sha256, name);
    *data = NULL;
    *len = 0;
    int fd = openat(c->dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
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

static void on_read(uv_work_t *work) {
    struct read *r = work->data;
    r->code = read_object(r->c, r->sha256, &r->data, &r->len);
}

static void on_look(uv_work_t *work) {
    struct look *l = work->data;
    for (size_t i = 0; i < l->count; i++) {
        struct collect_look *v = &l->v[i];
        char name[80];
        struct stat st;
        void *data;
        size_t len;
        if (l->whole) {
            v->code = read_object(l->c, v->sha256, &data, &len);
            free(data);
            continue;
        }
        name_of(v->sha256, name);
        if (fstatat(l->c->dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
            v->code = S_ISREG(st.st_mode) && st.st_size > 0 ? 0 : KN_ECORRUPT;
        else
            v->code = errno == ENOENT ? KN_ENOENT : KN_EIO;
    }
}

/* ---- on the loop's thread */

static void free_if_last(struct collect *c) {
    if (!c->destroyed || c->groups > 0 || c->reads > 0 || c->deleting_count > 0) return;
    close(c->incoming_fd);
    close(c->dir_fd);
    size_t pos = 0;
    void *d;
    while ((d = kn_map_next(c->discard, &pos))) free(d);
    kn_map_destroy(c->discard);
    free(c->deleting);
    free(c);
}

static void start_groups(struct collect *c);

static void average(uint64_t *mean, uint64_t v) {
    *mean = *mean ? (*mean * 7 + v) / 8 : v;
}

static void learn(struct collect *c, const struct collect_group *g) {
    if (g->whole) {
        average(&c->syncfs_us, g->sync_us);
        c->fsync_us += c->fsync_us / 64; /* what is not tried grows dearer or cheaper until it is */
    } else {
        average(&c->fsync_us, g->sync_us / g->count + 1);
        c->syncfs_us -= c->syncfs_us / 64;
    }
}

static void not_busy(struct collect *c, struct collect_item *i) {
    if (i->busy_prev)
        i->busy_prev->busy_next = i->busy_next;
    else
        c->busy = i->busy_next;
    if (i->busy_next) i->busy_next->busy_prev = i->busy_prev;
    c->count--;
}

static void on_group_done(uv_work_t *work, int status) {
    struct collect_group *g = work->data;
    struct collect *c = g->c;
    (void)status;
    c->groups--;
    learn(c, g);
    for (struct collect_item *i = g->first, *next; i; i = next) {
        next = i->next;
        not_busy(c, i);
        c->bytes -= i->blob.len;
        kn_blob_release(&i->blob);
        if (!c->destroyed) i->done(i->ctx, i->code, i->why);
        free(i);
    }
    free(g);
    if (!c->destroyed) start_groups(c);
    free_if_last(c);
}

static void start_groups(struct collect *c) {
    while (c->first && c->groups < GROUPS_MAX) {
        /* A second group only begins when it is worth a sync of its own. */
        if (c->groups > 0 && c->waiting < GROUP_ITEMS_MAX / 4 && c->bytes < GROUP_BYTES_MAX) return;
        struct collect_group *g = calloc(1, sizeof *g);
        if (!g) return; /* the next upload tries again */
        struct collect_item **end = &g->first;
        while (c->first && g->count < GROUP_ITEMS_MAX &&
               (g->count == 0 || g->bytes + c->first->blob.len <= GROUP_BYTES_MAX)) {
            struct collect_item *i = c->first;
            c->first = i->next;
            i->next = NULL;
            *end = i;
            end = &i->next;
            g->count++;
            g->bytes += i->blob.len;
            c->waiting--;
        }
        if (!c->first) c->last = NULL;
        g->c = c;
        g->work.data = g;
        g->whole = g->count > 3 && g->count * c->fsync_us > c->syncfs_us;
        if (uv_queue_work(c->loop, &g->work, on_group, on_group_done) != 0) abort();
        c->groups++;
    }
}

static void append(struct collect *c, struct collect_item *i) {
    i->next = NULL;
    if (c->last)
        c->last->next = i;
    else
        c->first = i;
    c->last = i;
    c->waiting++;
}

static void on_read_done(uv_work_t *work, int status) {
    struct read *r = work->data;
    struct collect *c = r->c;
    (void)status;
    c->reads--;
    if (r->code != 0 || c->destroyed) {
        free(r->data);
        r->data = NULL;
        r->len = 0;
    }
    if (!c->destroyed) r->got(r->ctx, r->code, r->data, r->len);
    free(r);
    free_if_last(c);
}

static void on_look_done(uv_work_t *work, int status) {
    struct look *l = work->data;
    struct collect *c = l->c;
    (void)status;
    c->reads--;
    if (!c->destroyed) l->done(l->ctx, l->v, l->count);
    free(l->v);
    free(l);
    free_if_last(c);
}

int collect_look(struct collect *c, struct collect_look *v, size_t count, bool whole, collect_looked done,
                 void *ctx) {
    if (c->reads >= READS_MAX) return KN_EAGAIN;
    struct look *l = calloc(1, sizeof *l);
    if (!l) return KN_ENOMEM;
    *l = (struct look){.c = c, .v = v, .count = count, .whole = whole, .done = done, .ctx = ctx};
    l->work.data = l;
    if (uv_queue_work(c->loop, &l->work, on_look, on_look_done) != 0) abort();
    c->reads++;
    return 0;
}

int collect_get(struct collect *c, const uint8_t sha256[KN_SHA256_BYTES], collect_got got, void *ctx) {
    if (c->reads >= READS_MAX) return KN_EAGAIN;
    struct read *r = calloc(1, sizeof *r);
    if (!r) return KN_ENOMEM;
    r->c = c;
    memcpy(r->sha256, sha256, sizeof r->sha256);
    r->got = got;
    r->ctx = ctx;
    r->work.data = r;
    if (uv_queue_work(c->loop, &r->work, on_read, on_read_done) != 0) abort();
    c->reads++;
    return 0;
}

size_t collect_bytes(const struct collect *c) {
    return c->bytes;
}
size_t collect_count(const struct collect *c) {
    return c->count;
}

/* ---- deleting, and putting */

/* On a pool's thread, since a busy disk may take milliseconds for each. Meanwhile a put of one of them is
 * held back: it would find the file there and rely on it. */
struct discard {
    uint8_t sha256[KN_SHA256_BYTES];
};

static void start_discards(struct collect *c);

void collect_keep(struct collect *c, const uint8_t sha256[KN_SHA256_BYTES]) {
    free(kn_map_remove(c->discard, sha256, KN_SHA256_BYTES));
}

void collect_keep_busy(struct collect *c) {
    for (struct collect_item *i = c->busy; i; i = i->busy_next) collect_keep(c, i->sha256);
}

static void on_discards(uv_work_t *work) {
    struct collect *c = work->data;
    for (size_t i = 0; i < c->deleting_count; i++) {
        char name[80];
        name_of(c->deleting[i], name);
        if (unlinkat(c->dir_fd, name, 0) != 0 && errno != ENOENT)
            kn_warn("object_not_deleted file=%s error=\"%s\"", name, strerror(errno));
    }
}

static void on_discarded(uv_work_t *work, int status) {
    struct collect *c = work->data;
    (void)status;
    c->deleting_count = 0;
    if (c->destroyed) {
        if (kn_clock_ms() < c->end_ms) start_discards(c);
        free_if_last(c);
        return;
    }
    while (c->held) {
        struct collect_item *i = c->held;
        c->held = i->next;
        append(c, i);
    }
    start_groups(c);
    start_discards(c);
}

static void start_discards(struct collect *c) {
    struct discard *d;
    size_t pos = 0, n = 0;
    if (c->deleting_count > 0) return;
    while (n < DISCARD_A_TURN && (d = kn_map_next(c->discard, &pos)))
        memcpy(c->deleting[n++], d->sha256, KN_SHA256_BYTES);
    for (size_t i = 0; i < n; i++) collect_keep(c, c->deleting[i]);
    c->deleting_count = n;
    c->deletion.data = c;
    if (n > 0 && uv_queue_work(c->loop, &c->deletion, on_discards, on_discarded) != 0) abort();
}

static bool is_being_deleted(const struct collect *c, const uint8_t sha256[KN_SHA256_BYTES]) {
    for (size_t i = 0; i < c->deleting_count; i++)
        if (memcmp(c->deleting[i], sha256, KN_SHA256_BYTES) == 0) return true;
    return false;
}

static void on_later(uv_idle_t *h) {
    uv_idle_stop(h);
    start_discards(h->data);
}

int collect_discard(struct collect *c, const uint8_t sha256[KN_SHA256_BYTES]) {
    struct discard *d = malloc(sizeof *d);
    if (!d) return KN_ENOMEM;
    memcpy(d->sha256, sha256, sizeof d->sha256);
    int rc = kn_map_put(c->discard, sha256, KN_SHA256_BYTES, d);
    if (rc != 0) free(d);
    if (rc == KN_EEXIST) rc = 0;
    uv_idle_start(c->later, on_later); /* not now: the caller may take some off the list again */
    return rc;
}

int collect_put(struct collect *c, const uint8_t sha256[KN_SHA256_BYTES], struct kn_blob *blob,
                collect_done done, void *ctx) {
    struct collect_item *i = calloc(1, sizeof *i);
    if (!i) return KN_ENOMEM;
    collect_keep(c, sha256);
    memcpy(i->sha256, sha256, sizeof i->sha256);
    i->blob = *blob;
    blob->data = NULL;
    i->done = done;
    i->ctx = ctx;
    i->busy_next = c->busy;
    if (c->busy) c->busy->busy_prev = i;
    c->busy = i;
    c->count++;
    c->bytes += i->blob.len;
    if (is_being_deleted(c, sha256)) {
        i->next = c->held;
        c->held = i;
        return 0;
    }
    append(c, i);
    start_groups(c);
    return 0;
}

/* ---- life */

static int open_dir(const char *path, struct kn_err *err) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? kn_err_set(err, KN_EIO, "%s: %s", path, strerror(errno)) : fd;
}

static void remove_strays(int incoming_fd) {
    int fd = dup(incoming_fd);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    struct dirent *e;
    size_t n = 0;
    if (!d) {
        if (fd >= 0) close(fd);
        return;
    }
    while ((e = readdir(d)))
        if (e->d_name[0] != '.' && unlinkat(incoming_fd, e->d_name, 0) == 0) n++;
    closedir(d);
    if (n) kn_info("strays_removed count=%zu", n);
}

int collect_create(uv_loop_t *loop, const char *dir, struct collect **out, struct kn_err *err) {
    char path[KN_PATH_MAX];
    if (strlen(dir) > KN_PATH_MAX - 100) return kn_err_set(err, KN_ELIMIT, "%.200s: too long", dir);
    snprintf(path, sizeof path, "%.3990s/incoming", dir);
    int rc = kn_fs_mkdirs(path, 0777, err);
    if (rc != 0) return rc;
    struct collect *c = calloc(1, sizeof *c);
    if (c) c->discard = kn_map_create(DISCARD_MAX);
    if (c) c->deleting = calloc(DISCARD_A_TURN, sizeof *c->deleting);
    if (c) c->later = malloc(sizeof *c->later);
    if (!c || !c->discard || !c->deleting || !c->later) {
        rc = kn_err_set(err, KN_ENOMEM, "objects: out of memory");
        goto fail;
    }
    c->loop = loop;
    c->dir_fd = c->incoming_fd = -1;
    snprintf(c->dir, sizeof c->dir, "%s", dir);
    if ((c->dir_fd = open_dir(dir, err)) < 0 || (c->incoming_fd = open_dir(path, err)) < 0) {
        rc = KN_EIO;
        if (c->dir_fd >= 0) close(c->dir_fd);
        goto fail;
    }
    for (unsigned i = 0; i < 256; i++) {
        char name[3];
        snprintf(name, sizeof name, "%02x", i);
        if (mkdirat(c->dir_fd, name, 0777) != 0 && errno != EEXIST) {
            rc = kn_err_set(err, KN_EIO, "%s/%s: %s", dir, name, strerror(errno));
            close(c->dir_fd);
            close(c->incoming_fd);
            goto fail;
        }
    }
    remove_strays(c->incoming_fd);
    c->fsync_us = 2000;
    c->syncfs_us = 5000;
    uv_idle_init(loop, c->later);
    c->later->data = c;
    *out = c;
    return 0;
fail:
    if (c) {
        kn_map_destroy(c->discard);
        free(c->deleting);
        free(c->later);
    }
    free(c);
    return rc;
}

static void free_handle(uv_handle_t *h) {
    free(h);
}

void collect_destroy(struct collect *c) {
    if (!c) return;
    c->destroyed = true;
    struct collect_item **lists[] = {&c->first, &c->held};
    for (int k = 0; k < 2; k++) {
        while (*lists[k]) {
            struct collect_item *i = *lists[k];
            *lists[k] = i->next;
            not_busy(c, i); /* a group that is still being written looks at its neighbours there */
            kn_blob_release(&i->blob);
            free(i);
        }
    }
    /* A private farm removes its batch and ends: the objects to be deleted go now, as far as time
     * allows. */
    c->end_ms = kn_clock_ms() + DISCARD_LAST_MS;
    start_discards(c);
    uv_close((uv_handle_t *)c->later, free_handle);
    free_if_last(c);
}
