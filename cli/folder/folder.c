/* See folder.h. */
#include "cli/folder/folder.h"

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
#include "base/picture.h"
#include "cli/cli.h"
#include "cli/folder/earlier.h"
#include "cli/folder/gallery.h"
#include "cli/folder/names.h"
#include "cli/folder/place.h"
#include "cli/talk/batch.h"
#include "cli/text.h"

#define FLUSH_EVERY_MS 1500
#define FLUSH_COST_SHARE 15 /* at most a fifteenth of the time goes into rewriting the manifest */
#define LIFE_EVERY_MS 5000  /* the gallery hears that often that a run goes on */

/* ---- opening ---- */

/* Again when the file was taken away between its opening and its locking: by a kiln that would not use the
 * folder and had made it. */
static int take_lock(struct folder *o, const char *path, struct kn_err *err) {
    for (;;) {
        struct stat ours, there;
        o->lock_made = true;
        o->lock_fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (o->lock_fd < 0 && errno == EEXIST) {
            o->lock_made = false;
            o->lock_fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
            if (o->lock_fd < 0 && errno == ENOENT) continue;
        }
        if (o->lock_fd < 0) return kn_err_set(err, KN_EIO, "-o %s: %s", path, strerror(errno));
        bool locked = flock(o->lock_fd, LOCK_EX | LOCK_NB) == 0;
        int why = locked ? 0 : errno;
        bool same = locked && fstat(o->lock_fd, &ours) == 0 && lstat(path, &there) == 0 &&
                    ours.st_ino == there.st_ino && ours.st_dev == there.st_dev;
        if (same) return KN_OK;
        close(o->lock_fd);
        o->lock_fd = -1;
        if (why == EWOULDBLOCK) return KN_ESTATE;
        if (why) return kn_err_set(err, KN_EIO, "-o %s: cannot be locked: %s", path, strerror(why));
    }
}

int folder_open(const char *dir, struct folder *out, struct kn_err *err) {
    memset(out, 0, sizeof *out);
    out->lock_fd = -1;
    out->eta_ms = -1;
    char path[KN_PATH_MAX];
    out->dir_made = !kn_fs_exists(dir);
    int rc = kn_fs_mkdirs(dir, 0777, err);
    if (rc) return kn_err_prefix(err, "-o");
    if (!realpath(dir, out->dir)) return kn_err_set(err, KN_EIO, "-o %s: %s", dir, strerror(errno));
    rc = kn_fs_join(out->images, sizeof out->images, out->dir, "images");
    if (rc == KN_OK) rc = kn_fs_join(path, sizeof path, out->dir, ".lock");
    if (rc) return kn_err_set(err, rc, "-o %.200s: the path is too long", dir);
    rc = take_lock(out, path, err);
    if (rc == KN_ESTATE) return kn_err_set(err, rc, "-o %s: another kiln is at work in it", dir);
    if (rc) return rc;
    mode_t mask = umask(0);
    umask(mask);
    out->mode = 0666 & ~(unsigned)mask;
    return KN_OK;
}

void folder_close(struct folder *o) {
    folder_forget_strings(o);
    names_free(o->names, o->count);
    o->names = NULL;
    free(o->twins);
    o->twins = NULL;
    free(o->entries);
    o->entries = NULL;
    gallery_fini(o);
    if (o->lock_fd >= 0 && o->lock_made && !o->described) { /* nothing was begun in it */
        char path[KN_PATH_MAX];
        if (kn_fs_join(path, sizeof path, o->dir, ".lock") == KN_OK) unlink(path);
        if (o->dir_made && rmdir(o->dir)) {
            /* somebody has put something into it */
        }
    }
    if (o->lock_fd >= 0) close(o->lock_fd);
    o->lock_fd = -1;
}

/* ---- beginning ---- */

/* Where an entry with these bytes stands in `twins`, or would. */
static uint32_t *twin_slot(const struct folder *o, const kn_digest sha256) {
    size_t s = 0;
    memcpy(&s, sha256, sizeof s);
    for (;; s++) {
        uint32_t *slot = &o->twins[s & (o->twin_slots - 1)];
        if (*slot == 0 || memcmp(o->entries[*slot - 1].sha256, sha256, sizeof(kn_digest)) == 0) return slot;
    }
}

/* So that another image with the same bytes finds them. */
static void remember(struct folder *o, size_t i) {
    uint32_t *slot = twin_slot(o, o->entries[i].sha256);
    if (*slot == 0) *slot = (uint32_t)i + 1;
}

int folder_begin(struct folder *o, const struct folder_ask *ask, struct kn_err *err) {
    o->tasks = ask->tasks;
    o->keys = ask->keys;
    o->count = ask->count;
    o->models = ask->models;
    o->name_pattern = ask->name_pattern;
    o->entries = calloc(o->count + 1, sizeof *o->entries);
    o->twin_slots = 16;
    while (o->twin_slots < 2 * o->count) o->twin_slots *= 2;
    o->twins = calloc(o->twin_slots, sizeof *o->twins);
    if (!o->entries || !o->twins) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    for (size_t i = 0; i < o->count; i++)
        o->entries[i].worker = o->entries[i].backend = o->entries[i].engine = o->entries[i].error = "";
    int rc = names_make(o->name_pattern, o->tasks, o->keys, o->models, o->count, &o->names, err);
    if (rc == KN_OK) rc = gallery_init(o, err);
    if (rc == KN_OK) rc = earlier_take(o, ask, err);
    for (size_t i = 0; rc == KN_OK && i < o->count; i++)
        if (o->entries[i].status == KN_RESULT_DONE) remember(o, i);
    return rc == KN_ENOMEM ? kn_err_set(err, rc, "%s", kn_err_words(rc)) : rc;
}

void folder_default(int n, char out[FOLDER_DEFAULT_MAX]) {
    if (n <= 1)
        snprintf(out, FOLDER_DEFAULT_MAX, "kiln-out");
    else
        snprintf(out, FOLDER_DEFAULT_MAX, "kiln-out-%d", n);
}

/* True when the batch of that folder is the one that is asked for: the other kiln that is at work in it was
 * given the same command. */
static bool is_same_batch(const char *dir, const struct folder_ask *ask) {
    json_object *batch = earlier_batch(dir);
    bool same = batch && earlier_has_keys(batch, ask->keys, ask->count);
    json_object_put(batch);
    return same;
}

int folder_choose(const char *dir, const struct folder_ask *ask, struct folder *o, struct kn_err *err) {
    char name[FOLDER_DEFAULT_MAX];
    if (dir || ask->replace) {
        folder_default(1, name);
        int rc = folder_open(dir ? dir : name, o, err);
        return rc ? rc : folder_begin(o, ask, err);
    }
    for (int n = 1; n <= FOLDER_DEFAULTS_MAX; n++) {
        struct kn_err why = {0};
        folder_default(n, name);
        int rc = folder_open(name, o, &why);
        if (rc == KN_OK) {
            rc = folder_begin(o, ask, &why);
        } else if (rc == KN_ESTATE && !is_same_batch(name, ask)) {
            rc = KN_EEXIST;
        }
        if (rc == KN_OK && n > 1)
            cli_say("kiln-out holds something else already: the pictures go to %s", name);
        if (rc != KN_EEXIST) {
            if (err) *err = why;
            return rc;
        }
        folder_close(o);
    }
    return kn_err_set(err, KN_EEXIST, "kiln-out to %s are taken; name a folder with -o", name);
}

/* ---- batch.json ---- */

int folder_describe(struct folder *o, struct kn_err *err) {
    char path[KN_PATH_MAX], hex[KN_SHA256_HEX];
    json_object *b = json_object_new_object(), *models = json_object_new_array();
    size_t model_count = 0;
    for (size_t i = 0; i < o->count; i++)
        if (kn_tasks_at(o->tasks, i)->model_index >= model_count)
            model_count = o->tasks->v[i].model_index + 1;
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
    folder_keys_hex(o->keys, o->count, hex);
    json_object_object_add(b, "keys_sha256", json_object_new_string(hex));
    if (o->name_pattern) json_object_object_add(b, "name_pattern", json_object_new_string(o->name_pattern));
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
    if (rc == KN_OK) kn_fs_remove_temps(path, 0); /* the lock is ours */
    if (rc == KN_OK)
        rc = kn_fs_replace(path, buf.data, buf.len, true, err);
    else
        kn_err_set(err, rc, "batch.json: %s", kn_err_words(rc));
    kn_buf_fini(&buf);
    json_object_put(b);
    if (rc == KN_OK) rc = gallery_write_page(o, err);
    if (rc == KN_OK) o->described = true;
    return rc;
}

/* ---- results ---- */

int folder_note(struct folder *o, uint32_t index, const struct kn_result *r) {
    if (index >= o->count) return KN_EPROTO;
    struct folder_image *e = &o->entries[index];
    if (e->status == KN_RESULT_DONE) return KN_OK; /* kept, or told twice */
    const char *worker = folder_intern(o, r->worker), *backend = folder_intern(o, r->backend),
               *engine = folder_intern(o, r->engine), *error = folder_intern(o, r->error);
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
    if (r->status == KN_RESULT_DONE) {
        e->loose = false;
        o->done++;
        remember(o, index);
    }
    if (r->status == KN_RESULT_FAILED) o->failed++;
    if (r->status == KN_RESULT_CANCELLED) o->cancelled++;
    o->changes++;
    gallery_note(o, index);
    return KN_OK;
}

static int note(struct folder *o, uint32_t index, const struct kn_result *r, struct kn_err *err) {
    int rc = folder_note(o, index, r);
    return rc ? kn_err_set(err, rc, "image %u: %s", index, kn_err_words(rc)) : KN_OK;
}

/* ---- pictures that are none */

/* These are not the bytes of a picture as image i and its result tell it. */
static bool is_bad(const struct folder *o, size_t i, const struct kn_result *r, const void *data,
                   size_t len) {
    const struct kn_task *t = kn_tasks_at(o->tasks, i);
    struct kn_picture want = {.width = t->width, .height = t->height, .decoded = true};
    struct kn_err err = {0};
    memcpy(want.pixels, r->pixels_sha256, sizeof want.pixels);
    if (kn_picture_check(data, len, &want, &err) != KN_EPARSE) return false;
    cli_say("image %zu is bad on the farm (%s): it is told, and renders it again", i, err.text);
    return true;
}

/* The same of the file in its place, which then goes. */
static bool is_bad_here(const struct folder *o, size_t i, const struct kn_result *r) {
    char path[PLACE_PATH_MAX];
    struct kn_buf file;
    place_path(o, NULL, i, path);
    kn_buf_init(&file, KN_IMAGE_BYTES_MAX);
    bool bad = kn_fs_read(path, &file, NULL) == 0 && is_bad(o, i, r, file.data ? file.data : "", file.len);
    kn_buf_fini(&file);
    if (bad) unlink(path);
    return bad;
}

/* ---- those that come */

struct fetching {
    struct folder *o;
    const struct kn_result *v;
    const uint32_t *index;
    const uint32_t *which; /* of v */
    uint32_t *bad;         /* of v: pictures that are none */
    size_t bad_count, lost;
};

static int got_object(void *ctx, size_t i, const void *data, size_t len, struct kn_err *err) {
    struct fetching *f = ctx;
    uint32_t k = f->which[i];
    if (is_bad(f->o, f->index[k], &f->v[k], data, len)) {
        f->bad[f->bad_count++] = k;
        return KN_OK;
    }
    int rc = place_data(f->o, f->index[k], data, len, err);
    if (rc == KN_OK) rc = note(f->o, f->index[k], &f->v[k], err);
    return rc;
}

static void missing_object(void *ctx, size_t i, const char *why) {
    struct fetching *f = ctx;
    (void)i;
    (void)why;
    f->lost++; /* whoever asked says it once, with the count */
}

/* Puts the picture of image i in its place without asking the farm for it. KN_ENOENT: that cannot be. */
static int put_here(struct folder *o, const char *objects_dir, size_t i, const kn_digest sha256,
                    struct kn_err *err) {
    char path[PLACE_PATH_MAX];
    place_path(o, NULL, i, path);
    if (o->entries[i].loose && place_is_intact(path, sha256)) return KN_OK;
    int rc = place_object(o, objects_dir, i, sha256, err);
    uint32_t twin = rc == KN_ENOENT ? *twin_slot(o, sha256) : 0;
    if (twin == 0) return rc;
    place_path(o, NULL, twin - 1, path); /* its object may have been moved to that one's place */
    return place_is_intact(path, sha256) ? place_copy(o, i, path, err) : KN_ENOENT;
}

int folder_take(struct folder *o, struct client *c, const struct kn_result *v, const uint32_t *index,
                size_t count, size_t *lost, struct kn_err *err) {
    kn_digest *digests = calloc(count + 1, sizeof *digests);
    uint32_t *which = calloc(count + 1, sizeof *which);
    uint32_t *tasks = calloc(count + 1, sizeof *tasks), *bad = calloc(count + 1, sizeof *bad);
    int rc =
        digests && which && tasks && bad ? KN_OK : kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    struct fetching f = {.o = o, .v = v, .index = index, .which = which, .bad = bad};
    kn_id batch;
    bool known = kn_uuid_parse(o->id, batch) == KN_OK;
    size_t n = 0;
    for (size_t i = 0; rc == KN_OK && i < count; i++) {
        if (index[i] >= o->count) {
            rc = kn_err_set(err, KN_EPROTO, "the farm speaks of an image %u of %zu", index[i], o->count);
        } else if (v[i].status != KN_RESULT_DONE) {
            rc = note(o, index[i], &v[i], err);
        } else if (o->entries[index[i]].status == KN_RESULT_DONE) {
            continue; /* here already */
        } else if ((rc = put_here(o, client_welcome(c)->objects_dir, index[i], v[i].sha256, err)) == KN_OK) {
            if (is_bad_here(o, index[i], &v[i]))
                bad[f.bad_count++] = (uint32_t)i;
            else
                rc = note(o, index[i], &v[i], err);
        } else if (rc == KN_ENOENT) {
            rc = KN_OK;
            memcpy(digests[n], v[i].sha256, sizeof(kn_digest));
            tasks[n] = v[i].index;
            which[n++] = (uint32_t)i;
        }
    }
    if (rc == KN_OK && n > 0) {
        struct client_objects objects = {.batch = known ? batch : NULL,
                                         .tasks = tasks,
                                         .digests = (const kn_digest *)digests,
                                         .count = n,
                                         .got = got_object,
                                         .missing = missing_object,
                                         .ctx = &f};
        rc = client_fetch(c, &objects, err);
    }
    for (size_t i = 0; rc == KN_OK && known && i < f.bad_count; i++)
        rc = batch_report_bad(c, batch, v[bad[i]].index, v[bad[i]].sha256, err);
    *lost += f.lost + f.bad_count;
    free(digests);
    free(which);
    free(tasks);
    free(bad);
    return rc;
}

/* ---- manifest ---- */

/* The manifest is a stream of lines like this one; built with json-c, so that strings are quoted right. */
static int manifest_line(const struct folder *o, size_t i, struct kn_buf *out) {
    const struct folder_image *e = &o->entries[i];
    const struct kn_task *t = kn_tasks_at(o->tasks, i);
    const struct kn_model_info *m = &o->models[t->model_index];
    char hex[KN_SHA256_HEX], file[FOLDER_FILE_MAX];
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
    folder_file(o, i, file);
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
