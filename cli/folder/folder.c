/* See folder.h. */
#include "cli/folder/folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/map.h"
#include "cli/cli.h"
#include "cli/folder/gallery.h"
#include "cli/folder/manifest.h"
#include "cli/text.h"

#define FLUSH_EVERY_MS 1500
#define FLUSH_COST_SHARE 15 /* at most a fifteenth of the time goes into rewriting the manifest */
#define LIFE_EVERY_MS 5000  /* the gallery hears that often that a run goes on */
#define STRINGS_MAX KN_TASKS_PER_BATCH_MAX /* every image may fail with words of its own */

/* ---- interned strings: thousands of images name the same worker, backend and engine ---- */

struct folder_strings {
    struct kn_map *map;
};

/* NULL: no memory. */
static const char *intern(struct folder *o, const char *s) {
    if (!s || !s[0]) return "";
    size_t len = strlen(s);
    char *have = kn_map_get(o->strings->map, s, len);
    if (have) return have;
    have = strdup(s);
    if (have && kn_map_put(o->strings->map, s, len, have)) {
        free(have);
        have = NULL;
    }
    return have;
}

/* ---- opening ---- */

int folder_open(const char *dir, struct folder *out, struct kn_err *err) {
    memset(out, 0, sizeof *out);
    out->lock_fd = -1;
    out->eta_ms = -1;
    char path[KN_PATH_MAX];
    int rc = kn_fs_mkdirs(dir, 0777, err);
    if (rc) return kn_err_prefix(err, "-o");
    if (!realpath(dir, out->dir)) return kn_err_set(err, KN_EIO, "-o %s: %s", dir, strerror(errno));
    rc = kn_fs_join(out->images, sizeof out->images, out->dir, "images");
    if (rc == KN_OK) rc = kn_fs_join(path, sizeof path, out->dir, ".lock");
    if (rc) return kn_err_set(err, rc, "-o %.200s: the path is too long", dir);
    rc = kn_fs_mkdirs(out->images, 0777, err);
    if (rc) return kn_err_prefix(err, "-o");
    out->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (out->lock_fd < 0) return kn_err_set(err, KN_EIO, "-o %s: %s", path, strerror(errno));
    if (flock(out->lock_fd, LOCK_EX | LOCK_NB)) {
        close(out->lock_fd);
        out->lock_fd = -1;
        return kn_err_set(err, KN_ESTATE, "-o %s: another kiln is at work in it", dir);
    }
    out->strings = calloc(1, sizeof *out->strings);
    if (out->strings) out->strings->map = kn_map_create(STRINGS_MAX);
    if (!out->strings || !out->strings->map) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    return KN_OK;
}

void folder_close(struct folder *o) {
    if (o->strings) {
        size_t pos = 0;
        char *s;
        if (o->strings->map)
            while ((s = kn_map_next(o->strings->map, &pos))) free(s);
        kn_map_destroy(o->strings->map);
        free(o->strings);
        o->strings = NULL;
    }
    free(o->entries);
    o->entries = NULL;
    gallery_fini(o);
    if (o->lock_fd >= 0) close(o->lock_fd);
    o->lock_fd = -1;
}

json_object *folder_old_batch(const struct folder *o) {
    char path[KN_PATH_MAX];
    struct kn_buf b;
    json_object *v = NULL;
    kn_buf_init(&b, 4u << 20);
    if (kn_fs_join(path, sizeof path, o->dir, "batch.json") == KN_OK && kn_fs_read(path, &b, NULL) == KN_OK &&
        b.len > 0) {
        v = manifest_parse(b.data, b.len, 16);
        if (v && !json_object_is_type(v, json_type_object)) {
            json_object_put(v);
            v = NULL;
        }
    }
    kn_buf_fini(&b);
    return v;
}

/* ---- what is there already ---- */

static const char *string_of(json_object *o, const char *name) {
    json_object *v;
    return json_object_object_get_ex(o, name, &v) && json_object_is_type(v, json_type_string)
               ? json_object_get_string(v)
               : "";
}

static uint32_t number_of(json_object *o, const char *name) {
    json_object *v;
    if (!json_object_object_get_ex(o, name, &v) || !json_object_is_type(v, json_type_int)) return 0;
    int64_t n = json_object_get_int64(v);
    return n < 0 || n > UINT32_MAX ? 0 : (uint32_t)n;
}

struct old_image {
    uint32_t index;
    struct folder_image e;
    bool used;
};

struct old_images {
    struct old_image *v;
    size_t count, cap;
    struct kn_map *by_key; /* digest -> struct old_image; built when v has stopped moving */
    kn_digest *keys;
};

/* One line of the old manifest; lines that say nothing usable are passed over: their images are rendered. */
static int old_line(struct folder *o, struct old_images *old, const char *line, size_t len) {
    json_object *v = manifest_parse(line, len, 32);
    struct old_image img = {0};
    kn_digest key;
    char want[32];
    int rc = KN_OK;
    if (!json_object_is_type(v, json_type_object) || strcmp(string_of(v, "status"), "done") != 0) goto out;
    img.index = number_of(v, "index");
    folder_file_name(img.index, want);
    if (img.index >= KN_TASKS_PER_BATCH_MAX || strcmp(string_of(v, "file"), want) != 0) goto out;
    if (kn_unhex(string_of(v, "key"), key, sizeof key) ||
        kn_unhex(string_of(v, "sha256"), img.e.sha256, sizeof(kn_digest)) ||
        kn_unhex(string_of(v, "pixels_sha256"), img.e.pixels_sha256, sizeof(kn_digest)))
        goto out;
    img.e.status = KN_RESULT_DONE;
    img.e.attempt = number_of(v, "attempt");
    img.e.render_ms = number_of(v, "render_ms");
    json_object *flat;
    img.e.flat = json_object_object_get_ex(v, "flat", &flat) && json_object_get_boolean(flat);
    img.e.worker = intern(o, string_of(v, "worker"));
    img.e.backend = intern(o, string_of(v, "backend"));
    img.e.engine = intern(o, string_of(v, "engine"));
    img.e.error = "";
    if (!img.e.worker || !img.e.backend || !img.e.engine) {
        rc = KN_ENOMEM;
        goto out;
    }
    if (old->count == old->cap) {
        size_t cap = old->cap ? old->cap * 2 : 256;
        struct old_image *nv = realloc(old->v, cap * sizeof *nv);
        if (nv) old->v = nv;
        kn_digest *nk = realloc(old->keys, cap * sizeof *nk);
        if (nk) old->keys = nk;
        if (!nv || !nk) {
            rc = KN_ENOMEM;
            goto out;
        }
        old->cap = cap;
    }
    old->v[old->count] = img;
    memcpy(old->keys[old->count++], key, sizeof key);
out:
    json_object_put(v);
    return rc;
}

static int read_old(struct folder *o, struct old_images *old, struct kn_err *err) {
    char path[KN_PATH_MAX];
    int rc = kn_fs_join(path, sizeof path, o->dir, "manifest.jsonl");
    if (rc) return kn_err_set(err, rc, "the path is too long");
    FILE *f = kn_fs_stream(path, NULL);
    if (f) {
        char *line = malloc(MANIFEST_LINE_MAX);
        size_t len;
        bool ended;
        int got;
        if (!line) rc = KN_ENOMEM;
        while (rc == KN_OK && ((got = manifest_next(f, line, &len, &ended)) == 1 || got == KN_ELIMIT))
            if (got == 1 && old->count < KN_TASKS_PER_BATCH_MAX) rc = old_line(o, old, line, len);
        free(line);
        fclose(f);
    }
    old->by_key = rc ? NULL : kn_map_create(old->count + 1);
    if (!old->by_key) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    for (size_t i = 0; i < old->count; i++) {
        rc = kn_map_put(old->by_key, old->keys[i], sizeof(kn_digest), &old->v[i]);
        if (rc && rc != KN_EEXIST) return kn_err_set(err, rc, "%s", kn_err_words(rc));
    }
    return KN_OK;
}

static int image_path(const struct folder *o, const char *fmt, uint32_t index, char out[KN_PATH_MAX + 64]) {
    char name[40];
    snprintf(name, sizeof name, fmt, index);
    snprintf(out, KN_PATH_MAX + 64, "%s/%s", o->images, name);
    return KN_OK;
}
#define PICTURE "%06u.png"
#define KEPT ".kept-%06u"
#define FRESH ".new-%06u"

static bool intact(const char *path, const kn_digest sha256) {
    kn_digest now;
    struct stat st;
    return lstat(path, &st) == 0 && S_ISREG(st.st_mode) && kn_sha256_file(path, now, NULL) == KN_OK &&
           memcmp(now, sha256, sizeof now) == 0;
}

/* Keeps what is asked for, first under names of their own where numbers have moved, then removes what the old
 * run left under numbers that are to be rendered, then gives the moved ones their numbers. */
static int keep(struct folder *o, struct old_images *old, const char *pin_backend, struct kn_err *err) {
    char from[KN_PATH_MAX + 64], to[KN_PATH_MAX + 64];
    uint8_t *state = calloc(old->count + 1, 1); /* 1: intact, 2: not */
    bool *moved = calloc(o->count + 1, sizeof *moved);
    int rc = state && moved ? KN_OK : kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    for (size_t i = 0; rc == KN_OK && i < o->count; i++) {
        struct old_image *img = kn_map_get(old->by_key, o->keys[i], sizeof(kn_digest));
        if (!img || (pin_backend && strcmp(img->e.backend, pin_backend) != 0)) continue;
        size_t at = (size_t)(img - old->v);
        image_path(o, PICTURE, img->index, from);
        if (!state[at]) state[at] = intact(from, img->e.sha256) ? 1 : 2;
        if (state[at] != 1) continue;
        if (img->index != i) {
            image_path(o, KEPT, (uint32_t)i, to);
            unlink(to);
            if (link(from, to)) {
                rc = kn_err_set(err, KN_EIO, "%s: %s", to, strerror(errno));
                break;
            }
            moved[i] = true;
        } else {
            img->used = true;
        }
        o->entries[i] = img->e;
        gallery_note(o, i);
        o->changes++; /* the first flush writes down where it is now */
        o->done++;
        o->kept++;
        if (cli_interrupted) rc = kn_err_set(err, KN_ECANCELED, "interrupted");
    }
    for (size_t i = 0; rc == KN_OK && i < old->count; i++) {
        if (old->v[i].used) continue;
        image_path(o, PICTURE, old->v[i].index, from);
        unlink(from);
    }
    for (size_t i = 0; rc == KN_OK && i < o->count; i++) {
        if (!moved[i]) continue;
        image_path(o, KEPT, (uint32_t)i, from);
        image_path(o, PICTURE, (uint32_t)i, to);
        if (rename(from, to)) rc = kn_err_set(err, KN_EIO, "%s: %s", to, strerror(errno));
    }
    free(state);
    free(moved);
    return rc;
}

/* Removes what a run that was killed left unfinished: names that only this file makes. */
static int sweep(struct folder *o, struct kn_err *err) {
    char path[KN_PATH_MAX];
    DIR *d = opendir(o->images);
    if (!d) return kn_err_set(err, KN_EIO, "%s: %s", o->images, strerror(errno));
    struct dirent *e;
    while ((e = readdir(d))) {
        size_t prefix = strncmp(e->d_name, ".new-", 5) == 0    ? 5
                        : strncmp(e->d_name, ".kept-", 6) == 0 ? 6
                                                               : 0;
        size_t digits = prefix ? strspn(e->d_name + prefix, "0123456789") : 0;
        if (digits < 6 || e->d_name[prefix + digits]) continue;
        if (kn_fs_join(path, sizeof path, o->images, e->d_name) == KN_OK) unlink(path);
    }
    closedir(d);
    return KN_OK;
}

int folder_begin(struct folder *o, const struct kn_task *tasks, const kn_digest *keys, size_t count,
                 const struct kn_model_info *models, const char *pin_backend, struct kn_err *err) {
    struct old_images old = {0};
    o->tasks = tasks;
    o->keys = keys;
    o->count = count;
    o->models = models;
    o->entries = calloc(count + 1, sizeof *o->entries);
    if (!o->entries) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    for (size_t i = 0; i < count; i++)
        o->entries[i].worker = o->entries[i].backend = o->entries[i].engine = o->entries[i].error = "";
    int rc = gallery_init(o, err);
    if (rc == KN_OK) rc = sweep(o, err);
    if (rc == KN_OK) rc = read_old(o, &old, err);
    if (rc == KN_OK) rc = keep(o, &old, pin_backend, err);
    kn_map_destroy(old.by_key);
    free(old.v);
    free(old.keys);
    return rc;
}

/* ---- batch.json ---- */

int folder_describe(struct folder *o, struct kn_err *err) {
    char path[KN_PATH_MAX], hex[KN_SHA256_HEX];
    json_object *b = json_object_new_object(), *models = json_object_new_array();
    size_t model_count = 0;
    for (size_t i = 0; i < o->count; i++)
        if (o->tasks[i].model_index >= model_count) model_count = o->tasks[i].model_index + 1;
    json_object_object_add(b, "kiln", json_object_new_string(KILN_VERSION));
    if (o->id[0]) json_object_object_add(b, "id", json_object_new_string(o->id));
    json_object_object_add(b, "name", json_object_new_string(o->name));
    json_object_object_add(b, "count", json_object_new_int64((int64_t)o->count));
    json_object_object_add(b, "created_ms", json_object_new_int64((int64_t)o->created_wall_ms));
    for (size_t i = 0; i < model_count; i++) {
        json_object *m = json_object_new_object();
        kn_hex(o->models[i].sha256, KN_SHA256_BYTES, hex);
        json_object_object_add(m, "name", json_object_new_string(o->models[i].name));
        json_object_object_add(m, "sha256", json_object_new_string(hex));
        json_object_array_add(models, m);
    }
    json_object_object_add(b, "models", models);
    if (o->request && o->request[0]) {
        struct json_tokener *tok = json_tokener_new_ex(16);
        json_object *r = tok ? json_tokener_parse_ex(tok, o->request, (int)strlen(o->request)) : NULL;
        if (tok) json_tokener_free(tok);
        if (r) json_object_object_add(b, "request", r);
    }
    const char *text = json_object_to_json_string_ext(b, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
                                                             JSON_C_TO_STRING_NOSLASHESCAPE);
    struct kn_buf buf;
    kn_buf_init(&buf, 8u << 20);
    int rc = kn_buf_appendf(&buf, "%s\n", text);
    if (rc == KN_OK) rc = kn_fs_join(path, sizeof path, o->dir, "batch.json");
    if (rc == KN_OK)
        rc = kn_fs_replace(path, buf.data, buf.len, true, err);
    else
        kn_err_set(err, rc, "batch.json: %s", kn_err_words(rc));
    kn_buf_fini(&buf);
    json_object_put(b);
    if (rc == KN_OK) rc = gallery_write_page(o, err);
    return rc;
}

/* ---- results ---- */

int folder_note(struct folder *o, uint32_t index, const struct kn_result *r) {
    if (index >= o->count) return KN_EPROTO;
    struct folder_image *e = &o->entries[index];
    if (e->status == KN_RESULT_DONE) return KN_OK; /* kept, or told twice */
    const char *worker = intern(o, r->worker), *backend = intern(o, r->backend),
               *engine = intern(o, r->engine), *error = intern(o, r->error);
    if (!worker || !backend || !engine || !error) return KN_ENOMEM;
    if (e->status == KN_RESULT_FAILED) o->failed--;
    if (e->status == KN_RESULT_CANCELLED) o->cancelled--;
    e->status = (uint8_t)r->status;
    e->flat = r->flat;
    e->attempt = r->attempt;
    e->render_ms = r->render_ms;
    memcpy(e->sha256, r->sha256, sizeof(kn_digest));
    memcpy(e->pixels_sha256, r->pixels_sha256, sizeof(kn_digest));
    e->worker = worker;
    e->backend = backend;
    e->engine = engine;
    e->error = error;
    if (r->status == KN_RESULT_DONE) o->done++;
    if (r->status == KN_RESULT_FAILED) o->failed++;
    if (r->status == KN_RESULT_CANCELLED) o->cancelled++;
    o->changes++;
    gallery_note(o, index);
    return KN_OK;
}

/* Writes to a name of its own, then to its number: a picture that is there is whole. */
static int put_file(const struct folder *o, uint32_t index, const void *data, size_t len,
                    struct kn_err *err) {
    char fresh[KN_PATH_MAX + 64], path[KN_PATH_MAX + 64];
    image_path(o, FRESH, index, fresh);
    image_path(o, PICTURE, index, path);
    int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) return kn_err_set(err, KN_EIO, "%s: %s", fresh, strerror(errno));
    const char *p = data;
    size_t left = len;
    while (left > 0) {
        ssize_t n = write(fd, p, left);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            int e = errno;
            close(fd);
            unlink(fresh);
            return kn_err_set(err, KN_EIO, "%s: %s", path, strerror(e));
        }
        p += n;
        left -= (size_t)n;
    }
    if (close(fd) || rename(fresh, path)) return kn_err_set(err, KN_EIO, "%s: %s", path, strerror(errno));
    return KN_OK;
}

static void object_path(const char *objects_dir, const char *hex, char out[KN_PATH_MAX + 80]) {
    snprintf(out, KN_PATH_MAX + 80, "%s/%.2s/%s.png", objects_dir, hex, hex);
}

/* A hard link to the farm's object, or a copy of it. False: it is not within reach here. */
static bool put_local(const struct folder *o, const char *objects_dir, uint32_t index,
                      const kn_digest sha256) {
    char hex[KN_SHA256_HEX], from[KN_PATH_MAX + 80], fresh[KN_PATH_MAX + 64], path[KN_PATH_MAX + 64];
    if (!objects_dir[0]) return false;
    kn_hex(sha256, KN_SHA256_BYTES, hex);
    object_path(objects_dir, hex, from);
    image_path(o, FRESH, index, fresh);
    image_path(o, PICTURE, index, path);
    if (!intact(from, sha256)) return false; /* whoever edits a picture in place edits the object too */
    unlink(fresh);
    if (link(from, fresh) == 0) return rename(fresh, path) == 0;
    struct kn_buf b;
    kn_buf_init(&b, KN_IMAGE_BYTES_MAX);
    kn_digest now;
    bool ok = kn_fs_read(from, &b, NULL) == KN_OK;
    if (ok) {
        kn_sha256(b.data, b.len, now);
        ok = memcmp(now, sha256, sizeof now) == 0 && put_file(o, index, b.data, b.len, NULL) == KN_OK;
    }
    kn_buf_fini(&b);
    return ok;
}

static int note(struct folder *o, uint32_t index, const struct kn_result *r, struct kn_err *err) {
    int rc = folder_note(o, index, r);
    return rc ? kn_err_set(err, rc, "image %u: %s", index, kn_err_words(rc)) : KN_OK;
}

struct fetching {
    struct folder *o;
    const struct kn_result *v;
    const uint32_t *index;
    const uint32_t *which; /* of v */
    size_t lost;
};

static int got_object(void *ctx, size_t i, const void *data, size_t len, struct kn_err *err) {
    struct fetching *f = ctx;
    uint32_t k = f->which[i];
    int rc = put_file(f->o, f->index[k], data, len, err);
    if (rc == KN_OK) rc = note(f->o, f->index[k], &f->v[k], err);
    return rc;
}

static void missing_object(void *ctx, size_t i, const char *why) {
    struct fetching *f = ctx;
    (void)i;
    (void)why;
    f->lost++; /* whoever asked says it once, with the count */
}

int folder_take(struct folder *o, struct client *c, const struct kn_result *v, const uint32_t *index,
                size_t count, size_t *lost, struct kn_err *err) {
    kn_digest *digests = calloc(count + 1, sizeof *digests);
    uint32_t *which = calloc(count + 1, sizeof *which);
    int rc = digests && which ? KN_OK : kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    size_t n = 0;
    for (size_t i = 0; rc == KN_OK && i < count; i++) {
        if (index[i] >= o->count) {
            rc = kn_err_set(err, KN_EPROTO, "the farm speaks of an image %u of %zu", index[i], o->count);
        } else if (v[i].status != KN_RESULT_DONE) {
            rc = note(o, index[i], &v[i], err);
        } else if (o->entries[index[i]].status == KN_RESULT_DONE) {
            continue; /* here already */
        } else if (put_local(o, client_welcome(c)->objects_dir, index[i], v[i].sha256)) {
            rc = note(o, index[i], &v[i], err);
        } else {
            memcpy(digests[n], v[i].sha256, sizeof(kn_digest));
            which[n++] = (uint32_t)i;
        }
    }
    if (rc == KN_OK && n > 0) {
        struct fetching f = {.o = o, .v = v, .index = index, .which = which};
        struct client_objects objects = {.digests = (const kn_digest *)digests,
                                         .count = n,
                                         .got = got_object,
                                         .missing = missing_object,
                                         .ctx = &f};
        rc = client_fetch(c, &objects, err);
        *lost += f.lost;
    }
    free(digests);
    free(which);
    return rc;
}

/* ---- manifest ---- */

/* The manifest is a stream of lines like this one; built with json-c, so that strings are quoted right. */
static int manifest_line(const struct folder *o, size_t i, struct kn_buf *out) {
    const struct folder_image *e = &o->entries[i];
    const struct kn_task *t = &o->tasks[i];
    const struct kn_model_info *m = &o->models[t->model_index];
    char hex[KN_SHA256_HEX], file[32];
    bool done = e->status == KN_RESULT_DONE;
    json_object *v = json_object_new_object();
#define ADD(name, value)                                                                                     \
    json_object_object_add_ex(v, name, value, JSON_C_OBJECT_ADD_KEY_IS_NEW | JSON_C_OBJECT_KEY_IS_CONSTANT)
    ADD("index", json_object_new_int64((int64_t)i));
    ADD("status", json_object_new_string(kn_result_status_name((enum kn_result_status)e->status)));
    ADD("prompt", json_object_new_string(t->prompt));
    ADD("negative", json_object_new_string(t->negative));
    ADD("seed", json_object_new_uint64(t->seed));
    ADD("sampler", json_object_new_string(kn_sampler_name(t->sampler)));
    ADD("schedule", json_object_new_string(kn_schedule_name(t->schedule)));
    ADD("steps", json_object_new_int64(t->steps));
    ADD("cfg", text_json_float(t->cfg));
    ADD("width", json_object_new_int64(t->width));
    ADD("height", json_object_new_int64(t->height));
    ADD("model", json_object_new_string(m->name));
    kn_hex(m->sha256, KN_SHA256_BYTES, hex);
    ADD("model_sha256", json_object_new_string(hex));
    ADD("backend", done ? json_object_new_string(e->backend) : NULL);
    ADD("engine", done ? json_object_new_string(e->engine) : NULL);
    kn_hex(o->keys[i], sizeof(kn_digest), hex);
    ADD("key", json_object_new_string(hex));
    folder_file_name((uint32_t)i, file);
    ADD("file", done ? json_object_new_string(file) : NULL);
    kn_hex(e->sha256, KN_SHA256_BYTES, hex);
    ADD("sha256", done ? json_object_new_string(hex) : NULL);
    kn_hex(e->pixels_sha256, KN_SHA256_BYTES, hex);
    ADD("pixels_sha256", done ? json_object_new_string(hex) : NULL);
    ADD("worker", e->worker[0] ? json_object_new_string(e->worker) : NULL);
    ADD("attempt", json_object_new_int64(e->attempt));
    ADD("render_ms", done ? json_object_new_int64(e->render_ms) : NULL);
    if (done && e->flat) ADD("flat", json_object_new_boolean(1));
    ADD("error", e->error[0] ? json_object_new_string(e->error) : NULL);
    json_object *extra = NULL;
    if (t->extra) {
        struct json_tokener *tok = json_tokener_new_ex(32);
        extra = tok ? json_tokener_parse_ex(tok, t->extra, (int)strlen(t->extra)) : NULL;
        if (tok) json_tokener_free(tok);
    }
    ADD("extra", extra);
#undef ADD
    int rc = text_json(v, out);
    json_object_put(v);
    return rc ? rc : kn_buf_append(out, "\n", 1);
}

static int write_manifest(struct folder *o, bool durable, struct kn_err *err) {
    char path[KN_PATH_MAX], temp[KN_PATH_MAX];
    int rc = kn_fs_join(path, sizeof path, o->dir, "manifest.jsonl");
    if (rc == KN_OK)
        rc = kn_fs_join(temp, sizeof temp, o->dir, ".manifest.jsonl.new"); /* the lock makes the name ours */
    if (rc) return kn_err_set(err, rc, "manifest.jsonl: the path is too long");
    FILE *f = fopen(temp, "we");
    if (!f) return kn_err_set(err, KN_EIO, "%s: %s", temp, strerror(errno));
    struct kn_buf line;
    kn_buf_init(&line, 1u << 20);
    for (size_t i = 0; rc == KN_OK && i < o->count; i++) {
        if (!o->entries[i].status) continue;
        kn_buf_clear(&line);
        rc = manifest_line(o, i, &line);
        if (rc == KN_OK && fwrite(line.data, 1, line.len, f) != line.len) rc = KN_EIO;
    }
    kn_buf_fini(&line);
    if (fflush(f) || (durable && fsync(fileno(f)))) rc = KN_EIO;
    int e = errno;
    if (fclose(f) && rc == KN_OK) {
        e = errno;
        rc = KN_EIO;
    }
    if (rc) {
        unlink(temp);
        return kn_err_set(err, rc, "manifest.jsonl: %s", rc == KN_EIO ? strerror(e) : kn_err_words(rc));
    }
    if (rename(temp, path)) return kn_err_set(err, KN_EIO, "%s: %s", path, strerror(errno));
    return durable ? kn_fs_sync_dir(o->dir, err) : KN_OK;
}

int folder_flush(struct folder *o, bool last, struct kn_err *err) {
    uint64_t now = kn_clock_ms(), pause = FLUSH_EVERY_MS;
    if (o->flush_cost_ms * FLUSH_COST_SHARE > pause) pause = o->flush_cost_ms * FLUSH_COST_SHARE;
    if (!last && o->changes == 0 && now - o->flushed_ms >= LIFE_EVERY_MS) {
        o->flushed_ms = now;
        return gallery_write_status(o, err);
    }
    if (!last && (o->changes == 0 || now - o->flushed_ms < pause)) return KN_OK;
    int rc = KN_OK;
    if (last) rc = kn_fs_sync_dir(o->images, err);
    if (rc == KN_OK) rc = write_manifest(o, last, err);
    if (rc == KN_OK) rc = gallery_write_data(o, err);
    o->changes = 0;
    o->flushed_ms = kn_clock_ms();
    o->flush_cost_ms = o->flushed_ms - now;
    return rc;
}
