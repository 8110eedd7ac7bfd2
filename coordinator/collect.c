/* See collect.h.
 *
 * Uploads wait in a list; up to GROUPS_MAX groups of them are worked on at once, each by one thread: check,
 * write, sync, rename, sync the folders. How to sync a group is a matter of cost, measured as it goes: fsync
 * of each file and folder, or one syncfs(2) for all of them, twice. On an ext4 disk with 1 KB files: 870/s
 * with fsync on four threads, several thousand with syncfs in groups of hundreds; but syncfs also waits for
 * what others wrote to the same file system. */
#include "coordinator/collect.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"

#define GROUPS_MAX 2
#define GROUP_ITEMS_MAX 512
#define GROUP_BYTES_MAX (32u << 20)
#define READS_MAX 256

struct collect_item {
    struct collect_item *next; /* in its list: waiting, or the group's */
    uint8_t sha256[KN_SHA256_BYTES];
    struct kn_blob blob;
    bool picture; /* it must be `want` */
    struct kn_picture want;
    collect_done done;
    void *ctx;
    int code;
    char why[160];
    char temp[OBJECTS_NAME_MAX]; /* name in incoming/; "" when there is nothing to rename */
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
    bool restored;
    void *data;
    size_t len;
};

struct look {
    struct collect *c;
    struct collect_look *v; /* owns */
    size_t count;
    bool whole;
    collect_looked done;
    void *ctx;
};

struct errand { /* collect_work() */
    uv_work_t work;
    struct collect *c;
    collect_worker worker;
    collect_worked worked;
    void *ctx;
};

struct collect {
    uv_loop_t *loop;
    struct objects *objects;
    struct collect_item *first, *last; /* waiting */
    size_t waiting, count, bytes;
    int groups, reads;
    bool destroyed;
    atomic_bool synced;           /* the folders' names are on disk */
    uint64_t fsync_us, syncfs_us; /* estimates: a file by itself, a whole group */
    collect_restored restored;    /* NULL: nobody is told */
    void *restored_ctx;
};

/* ---- on a pool's thread */

static void item_fail(struct collect_item *i, int code, const char *what) {
    int why = errno;
    i->code = code;
    if (code == KN_EIO)
        snprintf(i->why, sizeof i->why, "%s: %s", what, strerror(why));
    else
        snprintf(i->why, sizeof i->why, "%s", what);
}

static void write_item(struct collect *c, struct collect_item *i, bool sync) {
    uint8_t digest[KN_SHA256_BYTES];
    const char *what;
    kn_sha256(i->blob.data, i->blob.len, digest);
    if (memcmp(digest, i->sha256, sizeof digest) != 0) {
        item_fail(i, KN_ECORRUPT, "the bytes are not those of the digest");
        return;
    }
    struct kn_err err = {0};
    int bad = i->picture ? kn_picture_check(i->blob.data, i->blob.len, &i->want, &err) : 0;
    if (bad) {
        item_fail(i, bad == KN_ENOMEM ? bad : KN_ECORRUPT, err.text);
        return;
    }
    if (objects_has(c->objects, i->sha256, i->blob.data, i->blob.len)) return;
    int rc = objects_write(c->objects, i->blob.data, i->blob.len, sync, i->temp, &what);
    if (rc != 0) {
        item_fail(i, rc, what);
        i->temp[0] = 0;
    }
}

static void rename_item(struct collect *c, struct collect_item *i) {
    if (!i->temp[0]) return;
    if (i->code != 0)
        objects_drop(c->objects, i->temp);
    else if (objects_arrive(c->objects, i->temp, i->sha256, i->blob.data, i->blob.len) != 0)
        item_fail(i, KN_EIO, "rename");
}

static void fail_all(struct collect_group *g, const char *what) {
    for (struct collect_item *i = g->first; i; i = i->next)
        if (i->code == 0) item_fail(i, KN_EIO, what);
}

/* Also for objects that were there already: another thread may have renamed them and not synced yet. */
static void sync_folders(struct collect_group *g) {
    bool done[256] = {false};
    if (!atomic_load(&g->c->synced)) {
        if (objects_sync_root(g->c->objects) != 0) {
            fail_all(g, "fsync of the objects' folder");
            return;
        }
        atomic_store(&g->c->synced, true);
    }
    for (struct collect_item *i = g->first; i; i = i->next) {
        if (i->code != 0 || done[i->sha256[0]]) continue;
        bool ok = objects_sync_folder(g->c->objects, i->sha256) == 0;
        int why = errno;
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
    if (g->whole && objects_sync_all(c->objects) != 0) fail_all(g, "syncfs");
    uint64_t first = kn_clock_us() - t;
    for (struct collect_item *i = g->first; i; i = i->next) rename_item(c, i);
    t = kn_clock_us();
    if (g->whole) {
        if (objects_sync_all(c->objects) != 0) fail_all(g, "syncfs");
    } else {
        sync_folders(g);
    }
    g->sync_us += first + (kn_clock_us() - t);
}

static void on_read(uv_work_t *work) {
    struct read *r = work->data;
    r->code = objects_read(r->c->objects, r->sha256, &r->data, &r->len, &r->restored);
}

static void on_look(struct objects *o, void *ctx) {
    struct look *l = ctx;
    for (size_t i = 0; i < l->count; i++) {
        struct collect_look *v = &l->v[i];
        void *data = NULL;
        v->code = l->whole ? objects_read(o, v->sha256, &data, &v->len, &v->restored)
                           : objects_look(o, v->sha256, &v->restored);
        int bad = data && v->code == 0 && v->picture ? kn_picture_check(data, v->len, &v->want, NULL) : 0;
        if (bad) v->code = bad == KN_ENOMEM ? bad : KN_ECORRUPT;
        free(data);
    }
}

/* ---- on the loop's thread */

static void free_if_last(struct collect *c) {
    if (!c->destroyed || c->groups > 0 || c->reads > 0) return;
    objects_close(c->objects);
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

static void on_group_done(uv_work_t *work, int status) {
    struct collect_group *g = work->data;
    struct collect *c = g->c;
    (void)status;
    c->groups--;
    learn(c, g);
    for (struct collect_item *i = g->first, *next; i; i = next) {
        next = i->next;
        c->count--;
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
    if (!c->destroyed && r->restored && c->restored) c->restored(c->restored_ctx, r->sha256);
    if (!c->destroyed) r->got(r->ctx, r->code, r->data, r->len);
    free(r);
    free_if_last(c);
}

static void on_errand(uv_work_t *work) {
    struct errand *e = work->data;
    e->worker(e->c->objects, e->ctx);
}

static void on_errand_done(uv_work_t *work, int status) {
    struct errand *e = work->data;
    struct collect *c = e->c;
    (void)status;
    c->reads--;
    e->worked(e->ctx, c->destroyed);
    free(e);
    free_if_last(c);
}

int collect_work(struct collect *c, collect_worker worker, collect_worked worked, void *ctx) {
    if (c->reads >= READS_MAX) return KN_EAGAIN;
    struct errand *e = malloc(sizeof *e);
    if (!e) return KN_ENOMEM;
    *e = (struct errand){.c = c, .worker = worker, .worked = worked, .ctx = ctx};
    e->work.data = e;
    if (uv_queue_work(c->loop, &e->work, on_errand, on_errand_done) != 0) abort();
    c->reads++;
    return 0;
}

static void on_look_done(void *ctx, bool closed) {
    struct look *l = ctx;
    struct collect *c = l->c;
    for (size_t i = 0; !closed && c->restored && i < l->count; i++)
        if (l->v[i].restored) c->restored(c->restored_ctx, l->v[i].sha256);
    if (!closed) l->done(l->ctx, l->v, l->count);
    free(l->v);
    free(l);
}

int collect_look(struct collect *c, struct collect_look *v, size_t count, bool whole, collect_looked done,
                 void *ctx) {
    struct look *l = calloc(1, sizeof *l);
    if (!l) return KN_ENOMEM;
    *l = (struct look){.c = c, .v = v, .count = count, .whole = whole, .done = done, .ctx = ctx};
    int rc = collect_work(c, on_look, on_look_done, l);
    if (rc != 0) free(l);
    return rc;
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

void collect_on_restored(struct collect *c, collect_restored restored, void *ctx) {
    c->restored = restored;
    c->restored_ctx = ctx;
}

int collect_put(struct collect *c, const uint8_t sha256[KN_SHA256_BYTES], struct kn_blob *blob,
                const struct kn_picture *want, collect_done done, void *ctx) {
    struct collect_item *i = calloc(1, sizeof *i);
    if (!i) return KN_ENOMEM;
    memcpy(i->sha256, sha256, sizeof i->sha256);
    i->blob = *blob;
    blob->data = NULL;
    i->picture = want != NULL;
    if (want) i->want = *want;
    i->done = done;
    i->ctx = ctx;
    c->count++;
    c->bytes += i->blob.len;
    append(c, i);
    start_groups(c);
    return 0;
}

/* ---- life */

int collect_create(uv_loop_t *loop, const char *dir, uint64_t term, struct collect **out,
                   struct kn_err *err) {
    struct collect *c = calloc(1, sizeof *c);
    if (!c) return kn_err_set(err, KN_ENOMEM, "objects: out of memory");
    int rc = objects_open(dir, term, &c->objects, err);
    if (rc != 0) {
        free(c);
        return rc;
    }
    c->loop = loop;
    c->fsync_us = 2000;
    c->syncfs_us = 5000;
    size_t strays = objects_remove_strays(c->objects);
    if (strays) kn_info("strays_removed count=%zu", strays);
    *out = c;
    return 0;
}

void collect_destroy(struct collect *c) {
    if (!c) return;
    c->destroyed = true;
    while (c->first) {
        struct collect_item *i = c->first;
        c->first = i->next;
        c->count--;
        kn_blob_release(&i->blob);
        free(i);
    }
    free_if_last(c);
}
