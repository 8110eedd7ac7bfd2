/* See earlier.h. Everything is looked at first; what changes the folder begins at "changing". */
#include "cli/folder/earlier.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/map.h"
#include "cli/cli.h"
#include "cli/folder/gallery.h"
#include "cli/folder/manifest.h"
#include "cli/folder/names.h"
#include "cli/folder/pixels.h"
#include "cli/folder/place.h"

#define NOBODY SIZE_MAX
#define FOREIGN_TOLD 3
#define ASIDE_TOLD 5

struct old_image {
    const char *file;      /* interned; "": it has no picture */
    struct folder_image e; /* status: how it ended */
    size_t next;           /* with the same key, or NOBODY */
    enum { UNKNOWN, INTACT, CHANGED, MISSING } state;
    bool used;
};

struct loose {  /* a picture of kiln's that no line tells of */
    char *name; /* owns; in images/ */
    size_t image;
};

struct earlier {
    struct folder *o;
    json_object *batch; /* owns; or NULL */
    struct old_image *v;
    kn_digest *keys;
    size_t count, cap;
    bool manifest_there, manifest_ours;
    struct kn_map *by_key, *by_file; /* digest -> the first old image; file -> old image */
    struct kn_map *parameters;       /* digest -> &o->keys[image] that carries them; made when it is needed */
    struct loose *loose;
    size_t loose_count, loose_cap;
    size_t foreign_count;
    char foreign[300]; /* the first of them */
    size_t not_asked;  /* images of the manifest */
    size_t aside;
};

static int no_memory(struct kn_err *err) {
    return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
}

/* ---- batch.json ---- */

json_object *earlier_batch(const char *dir) {
    char path[KN_PATH_MAX];
    struct kn_buf b;
    json_object *v = NULL, *field;
    kn_buf_init(&b, 8u << 20);
    if (kn_fs_join(path, sizeof path, dir, "batch.json") == KN_OK && kn_fs_read(path, &b, NULL) == KN_OK &&
        b.len > 0)
        v = manifest_parse(b.data, b.len, 16);
    kn_buf_fini(&b);
    if (json_object_is_type(v, json_type_object) && json_object_object_get_ex(v, "kiln", &field) &&
        json_object_object_get_ex(v, "count", &field) && json_object_is_type(field, json_type_int))
        return v;
    json_object_put(v);
    return NULL;
}

bool earlier_has_keys(json_object *batch, const kn_digest *keys, size_t count) {
    char hex[KN_SHA256_HEX];
    json_object *v;
    folder_keys_hex(keys, count, hex);
    return json_object_object_get_ex(batch, "keys_sha256", &v) && json_object_is_type(v, json_type_string) &&
           strcmp(json_object_get_string(v), hex) == 0;
}

/* ---- manifest.jsonl ---- */

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

static int add_old(struct earlier *a, const struct old_image *img, const kn_digest key) {
    if (a->count == a->cap) {
        size_t cap = a->cap ? a->cap * 2 : 256;
        struct old_image *nv = realloc(a->v, cap * sizeof *nv);
        if (nv) a->v = nv;
        kn_digest *nk = realloc(a->keys, cap * sizeof *nk);
        if (nk) a->keys = nk;
        if (!nv || !nk) return KN_ENOMEM;
        a->cap = cap;
    }
    a->v[a->count] = *img;
    memcpy(a->keys[a->count++], key, sizeof(kn_digest));
    return KN_OK;
}

/* One line; those that say nothing usable are passed over: their images are rendered. */
static int old_line(struct earlier *a, const char *line, size_t len) {
    struct folder *o = a->o;
    json_object *v = manifest_parse(line, len, 32), *flat;
    struct old_image img = {.file = "", .next = NOBODY};
    kn_digest key;
    int rc = KN_OK;
    if (!json_object_is_type(v, json_type_object) || kn_unhex(string_of(v, "key"), key, sizeof key)) goto out;
    const char *status = string_of(v, "status");
    if (strcmp(status, "done") == 0) {
        if (!folder_file_is_safe(string_of(v, "file")) ||
            kn_unhex(string_of(v, "sha256"), img.e.sha256, sizeof(kn_digest)) ||
            kn_unhex(string_of(v, "pixels_sha256"), img.e.pixels_sha256, sizeof(kn_digest)))
            goto out;
        img.e.status = KN_RESULT_DONE;
        img.file = folder_intern(o, string_of(v, "file"));
    } else if (strcmp(status, "failed") == 0) {
        img.e.status = KN_RESULT_FAILED;
    } else if (strcmp(status, "cancelled") == 0) {
        img.e.status = KN_RESULT_CANCELLED;
    } else {
        goto out;
    }
    a->manifest_ours = true;
    img.e.attempt = number_of(v, "attempt");
    img.e.render_ms = number_of(v, "render_ms");
    img.e.flat = json_object_object_get_ex(v, "flat", &flat) && json_object_get_boolean(flat);
    img.e.worker = folder_intern(o, string_of(v, "worker"));
    img.e.backend = folder_intern(o, string_of(v, "backend"));
    img.e.engine = folder_intern(o, string_of(v, "engine"));
    img.e.error = "";
    rc = img.file && img.e.worker && img.e.backend && img.e.engine ? add_old(a, &img, key) : KN_ENOMEM;
out:
    json_object_put(v);
    return rc;
}

static int read_manifest(struct earlier *a, struct kn_err *err) {
    char path[KN_PATH_MAX];
    struct stat st;
    int rc = kn_fs_join(path, sizeof path, a->o->dir, "manifest.jsonl");
    if (rc) return kn_err_set(err, rc, "the path is too long");
    a->manifest_there = lstat(path, &st) == 0;
    if (a->manifest_there && a->batch && S_ISREG(st.st_mode) && st.st_size == 0) a->manifest_ours = true;
    FILE *f = kn_fs_stream(path, NULL);
    if (f) {
        char *line = malloc(MANIFEST_LINE_MAX);
        size_t len;
        bool ended;
        int got;
        if (!line) rc = KN_ENOMEM;
        while (rc == KN_OK && ((got = manifest_next(f, line, &len, &ended)) == 1 || got == KN_ELIMIT))
            if (got == 1 && a->count < KN_TASKS_PER_BATCH_MAX) rc = old_line(a, line, len);
        free(line);
        fclose(f);
    }
    a->by_key = rc ? NULL : kn_map_create(a->count + 1);
    a->by_file = rc ? NULL : kn_map_create(a->count + 1);
    if (!a->by_key || !a->by_file) return no_memory(err);
    for (size_t i = a->count; i-- > 0;) { /* from the end: the first of a key stands first in its chain */
        struct old_image *img = &a->v[i], *first = kn_map_remove(a->by_key, a->keys[i], sizeof(kn_digest));
        if (first) img->next = (size_t)(first - a->v);
        rc = kn_map_put(a->by_key, a->keys[i], sizeof(kn_digest), img);
        if (rc == KN_OK && img->file[0]) {
            char *fold = names_fold(img->file);
            rc = fold ? kn_map_put(a->by_file, fold, strlen(fold), img) : KN_ENOMEM;
            if (rc == KN_EEXIST) rc = KN_OK; /* a manifest that somebody edited: two lines, one picture */
            free(fold);
        }
        if (rc) return kn_err_set(err, rc, "%s", kn_err_words(rc));
    }
    return KN_OK;
}

/* ---- files that are not kiln's ---- */

static void foreign(struct earlier *a, const char *name) {
    size_t n = strlen(a->foreign);
    if (a->foreign_count++ < FOREIGN_TOLD)
        snprintf(a->foreign + n, sizeof a->foreign - n, "%s%.80s", n ? ", " : "", name);
}

/* True when DIR/name is a file that begins with `words`, or (anywhere) holds them. */
static bool holds(const struct folder *o, const char *name, const char *words, bool anywhere) {
    char path[KN_PATH_MAX];
    struct kn_buf b;
    kn_buf_init(&b, 64u << 20);
    bool yes = kn_fs_join(path, sizeof path, o->dir, name) == KN_OK && kn_fs_read(path, &b, NULL) == KN_OK &&
               b.len >= strlen(words) &&
               (anywhere ? strstr(b.data, words) != NULL : memcmp(b.data, words, strlen(words)) == 0);
    kn_buf_fini(&b);
    return yes;
}

static bool is_there(const struct folder *o, const char *name, mode_t *kind) {
    char path[KN_PATH_MAX];
    struct stat st;
    if (kn_fs_join(path, sizeof path, o->dir, name) || lstat(path, &st)) return false;
    if (S_ISLNK(st.st_mode) && stat(path, &st)) st.st_mode = S_IFLNK;
    *kind = st.st_mode & S_IFMT;
    return true;
}

/* A folder that kiln makes, or nothing. */
static bool folder_or_nothing(struct earlier *a, const char *name) {
    mode_t kind;
    if (!is_there(a->o, name, &kind)) return false;
    if (kind != S_IFDIR) foreign(a, name);
    return kind == S_IFDIR;
}

static int look_at_gallery(struct earlier *a, struct kn_err *err) {
    char path[KN_PATH_MAX], name[300];
    if (!folder_or_nothing(a, "gallery")) return KN_OK;
    int rc = kn_fs_join(path, sizeof path, a->o->dir, "gallery");
    DIR *d = rc ? NULL : opendir(path);
    if (!d) return kn_err_set(err, KN_EIO, "%s: %s", path, strerror(errno));
    struct dirent *e;
    while ((e = readdir(d))) {
        bool status = strcmp(e->d_name, "status.js") == 0;
        if (!status && !gallery_is_part(e->d_name)) continue;
        snprintf(name, sizeof name, "gallery/%s", e->d_name);
        if (!holds(a->o, name, status ? "kiln.status(" : "kiln.part(", false)) foreign(a, name);
    }
    closedir(d);
    return KN_OK;
}

/* ---- pictures that no line tells of ---- */

/* The text without the version of kiln at its end, which another may have written. */
static void parameters_digest(const char *text, kn_digest out) {
    size_t len = strlen(text);
    const char *version = NULL;
    for (const char *p = text; (p = strstr(p, ", Version: ")); p++) version = p;
    kn_sha256(text, version ? (size_t)(version - text) : len, out);
}

static int make_parameters(struct earlier *a) {
    struct folder *o = a->o;
    struct kn_buf text;
    int rc = KN_OK;
    if (a->parameters) return KN_OK;
    a->parameters = kn_map_create(o->count + 1);
    if (!a->parameters) return KN_ENOMEM;
    kn_buf_init(&text, 1u << 20);
    for (size_t i = 0; rc == KN_OK && i < o->count; i++) {
        kn_digest d;
        kn_buf_clear(&text);
        const struct kn_task *t = kn_tasks_at(o->tasks, i);
        rc = kn_task_parameters(t, &o->models[t->model_index], "", &text);
        if (rc) break;
        parameters_digest(text.data, d);
        rc = kn_map_put(a->parameters, d, sizeof d, (void *)(uintptr_t)&o->keys[i]);
        if (rc == KN_EEXIST) rc = KN_OK; /* the same image twice: the picture is either's */
    }
    kn_buf_fini(&text);
    return rc;
}

/* The image that the picture images/NAME says it is; NOBODY: it is not kiln's, or of none that is asked for. */
static int recognise(struct earlier *a, const char *name, size_t *image) {
    char path[KN_PATH_MAX];
    struct kn_buf file;
    char *text = NULL;
    *image = NOBODY;
    kn_buf_init(&file, KN_IMAGE_BYTES_MAX);
    struct stat st;
    if (kn_fs_join(path, sizeof path, a->o->images, name) == KN_OK && lstat(path, &st) == 0 &&
        S_ISREG(st.st_mode) && kn_fs_read(path, &file, NULL) == KN_OK && file.len > 0)
        text = pixels_parameters(file.data, file.len);
    kn_buf_fini(&file);
    if (!text) return KN_OK;
    kn_digest d;
    parameters_digest(text, d);
    free(text);
    int rc = make_parameters(a);
    const kn_digest *key = rc ? NULL : kn_map_get(a->parameters, d, sizeof d);
    if (key) *image = (size_t)(key - a->o->keys);
    return rc;
}

static int add_loose(struct earlier *a, const char *name, size_t image) {
    if (a->loose_count == a->loose_cap) {
        size_t cap = a->loose_cap ? a->loose_cap * 2 : 64;
        struct loose *v = realloc(a->loose, cap * sizeof *v);
        if (!v) return KN_ENOMEM;
        a->loose = v;
        a->loose_cap = cap;
    }
    char *own = strdup(name);
    if (!own) return KN_ENOMEM;
    a->loose[a->loose_count++] = (struct loose){.name = own, .image = image};
    return KN_OK;
}

/* The names that pictures will get -> anything. */
static int wanted_names(const struct folder *o, struct kn_map **out) {
    char buf[FOLDER_FILE_MAX];
    *out = kn_map_create(o->count + 1);
    int rc = *out ? KN_OK : KN_ENOMEM;
    for (size_t i = 0; rc == KN_OK && i < o->count; i++) {
        char *fold = names_fold(folder_file(o, i, buf));
        rc = fold ? kn_map_put(*out, fold, strlen(fold), (void *)(uintptr_t)o) : KN_ENOMEM;
        free(fold);
    }
    return rc;
}

/* Names that only kiln makes, and only for a moment: see place.h. */
static bool is_temporary(const char *name, const char *prefix) {
    size_t n = strlen(prefix), digits = strncmp(name, prefix, n) == 0 ? strspn(name + n, "0123456789") : 0;
    return digits >= 6 && !name[n + digits];
}

static int look_at_images(struct earlier *a, struct kn_err *err) {
    struct folder *o = a->o;
    struct kn_map *wanted = NULL;
    struct dirent *e;
    if (!folder_or_nothing(a, "images")) return KN_OK;
    int rc = wanted_names(o, &wanted);
    DIR *d = rc ? NULL : opendir(o->images);
    if (rc == KN_OK && !d) {
        rc = KN_EIO;
        kn_err_set(err, rc, "%s: %s", o->images, strerror(errno));
    }
    while (rc == KN_OK && (e = readdir(d))) {
        char file[FOLDER_FILE_MAX];
        if (e->d_name[0] == '.') continue;
        snprintf(file, sizeof file, "images/%s", e->d_name);
        char *fold = names_fold(file);
        if (!fold) rc = KN_ENOMEM;
        bool of_interest =
            fold && !kn_map_get(a->by_file, fold, strlen(fold)) && kn_map_get(wanted, fold, strlen(fold));
        free(fold);
        size_t image = NOBODY;
        if (of_interest) rc = recognise(a, e->d_name, &image);
        if (rc == KN_OK && image != NOBODY) rc = add_loose(a, e->d_name, image);
        if (rc == KN_OK && of_interest && image == NOBODY) foreign(a, file);
        if (rc == KN_OK && cli_interrupted) rc = kn_err_set(err, KN_ECANCELED, "interrupted");
    }
    if (d) closedir(d);
    kn_map_destroy(wanted);
    return rc == KN_ENOMEM ? no_memory(err) : rc;
}

static int look_for_foreign(struct earlier *a, struct kn_err *err) {
    mode_t kind;
    if (!a->batch && is_there(a->o, "batch.json", &kind)) foreign(a, "batch.json");
    if (a->manifest_there && !a->manifest_ours) foreign(a, "manifest.jsonl");
    if (is_there(a->o, "index.html", &kind) && !holds(a->o, "index.html", "gallery/status.js", true))
        foreign(a, "index.html");
    int rc = look_at_gallery(a, err);
    if (rc == KN_OK) rc = look_at_images(a, err);
    if (rc || a->foreign_count == 0) return rc;
    char more[40] = "";
    if (a->foreign_count > FOREIGN_TOLD)
        snprintf(more, sizeof more, " and %zu more", a->foreign_count - FOREIGN_TOLD);
    return kn_err_set(
        err, KN_EEXIST,
        "%s: holds what is not kiln's: %s%s; nothing was changed. Move it away, or name another folder with -o",
        a->o->dir, a->foreign, more);
}

/* ---- the same or more? ---- */

static int by_digest(const void *x, const void *y) {
    return memcmp(x, y, sizeof(kn_digest));
}

/* Counts the old images that are not asked for; of equal ones, those that are more than are asked for. */
static int count_not_asked(struct earlier *a, struct kn_err *err) {
    size_t n = a->o->count, m = a->count, i = 0, k = 0;
    if (m == 0) return KN_OK;
    kn_digest *asked = malloc((n + 1) * sizeof *asked), *old = malloc((m + 1) * sizeof *old);
    int rc = asked && old ? KN_OK : no_memory(err);
    if (rc == KN_OK) {
        memcpy(asked, a->o->keys, n * sizeof *asked);
        memcpy(old, a->keys, m * sizeof *old);
        qsort(asked, n, sizeof *asked, by_digest);
        qsort(old, m, sizeof *old, by_digest);
        while (k < m) {
            int c = i < n ? memcmp(asked[i], old[k], sizeof *old) : 1;
            if (c < 0) {
                i++;
            } else {
                a->not_asked += c > 0;
                i += c == 0;
                k++;
            }
        }
    }
    free(asked);
    free(old);
    return rc;
}

/* True when the folder is of a batch none of whose images has ended yet, so that its keys are not known, and
 * which this is not: the farm may be at work on it. A file that has grown meanwhile is still the same command. */
static bool has_begun_another(const struct earlier *a, const struct folder_ask *ask) {
    json_object *id, *request;
    if (!a->batch || a->count > 0 || !json_object_object_get_ex(a->batch, "id", &id) ||
        !json_object_object_get_ex(a->batch, "keys_sha256", &request) ||
        earlier_has_keys(a->batch, ask->keys, ask->count))
        return false;
    return !ask->source || !json_object_object_get_ex(a->batch, "request", &request) ||
           strcmp(string_of(request, "source"), ask->source) != 0 ||
           number_of(a->batch, "count") > ask->count;
}

static int refuse_other(const struct earlier *a, struct kn_err *err) {
    const char *name = a->batch ? string_of(a->batch, "name") : "";
    char what[120] = "";
    if (name[0]) snprintf(what, sizeof what, " of %.80s", name);
    if (!a->not_asked)
        return kn_err_set(
            err, KN_EEXIST,
            "%s: holds another batch: %u images%s, of which manifest.jsonl tells nothing yet; nothing was changed. "
            "--replace lets it go, and -o names another folder",
            a->o->dir, number_of(a->batch, "count"), what);
    return kn_err_set(
        err, KN_EEXIST,
        "%s: holds another batch: %zu of its %zu images%s are not asked for; nothing was changed. "
        "--replace removes them, and -o names another folder",
        a->o->dir, a->not_asked, a->count, what);
}

/* ---- changing ---- */

/* Moves DIR/images/NAME to DIR/changed/, where nothing of that name lies yet. */
static int put_aside(struct earlier *a, const char *file, struct kn_err *err) {
    char from[KN_PATH_MAX], dir[KN_PATH_MAX], to[KN_PATH_MAX + 300], name[300];
    const char *base = file + strlen("images/");
    struct stat st;
    int rc = kn_fs_join(from, sizeof from, a->o->dir, file);
    if (rc == KN_OK) rc = kn_fs_join(dir, sizeof dir, a->o->dir, "changed");
    if (rc) return kn_err_set(err, rc, "changed: the path is too long");
    rc = kn_fs_mkdirs(dir, 0777, err);
    if (rc) return rc;
    snprintf(name, sizeof name, "%s", base);
    snprintf(to, sizeof to, "%s/%s", dir, name);
    for (int n = 2; lstat(to, &st) == 0; n++) {
        snprintf(name, sizeof name, "%d-%.250s", n, base);
        snprintf(to, sizeof to, "%s/%s", dir, name);
    }
    if (rename(from, to)) return kn_err_set(err, KN_EIO, "%s: %s", to, strerror(errno));
    if (++a->aside <= ASIDE_TOLD) cli_say("%s is not as kiln made it: it is kept as changed/%s", file, name);
    return KN_OK;
}

/* How an old image's picture is now. */
static void look_at_picture(const struct earlier *a, struct old_image *img) {
    char path[KN_PATH_MAX];
    struct stat st;
    if (img->state != UNKNOWN) return;
    img->state = MISSING;
    if (!img->file[0] || kn_fs_join(path, sizeof path, a->o->dir, img->file) || lstat(path, &st)) return;
    img->state = place_is_intact(path, img->e.sha256) ? INTACT : CHANGED;
}

/* A run that was killed while it gave pictures new numbers: one that still has its name for a moment goes back
 * to where the manifest says it is. */
static int restore(struct earlier *a) {
    struct dirent *e;
    DIR *d = opendir(a->o->images);
    struct kn_map *by_sha = NULL;
    int rc = KN_OK;
    while (rc == KN_OK && d && (e = readdir(d))) {
        char from[KN_PATH_MAX], to[KN_PATH_MAX];
        kn_digest sha;
        struct stat st;
        if (!is_temporary(e->d_name, PLACE_KEPT) || kn_fs_join(from, sizeof from, a->o->images, e->d_name) ||
            kn_sha256_file(from, sha, NULL))
            continue;
        if (!by_sha) {
            by_sha = kn_map_create(a->count + 1);
            if (!by_sha) rc = KN_ENOMEM;
            for (size_t i = 0; rc == KN_OK && i < a->count; i++) {
                if (a->v[i].e.status != KN_RESULT_DONE) continue;
                rc = kn_map_put(by_sha, a->v[i].e.sha256, sizeof(kn_digest), &a->v[i]);
                if (rc == KN_EEXIST) rc = KN_OK;
            }
        }
        struct old_image *img = rc ? NULL : kn_map_get(by_sha, sha, sizeof sha);
        if (img && kn_fs_join(to, sizeof to, a->o->dir, img->file) == KN_OK && lstat(to, &st) != 0 &&
            rename(from, to) == 0)
            img->state = UNKNOWN;
    }
    if (d) closedir(d);
    kn_map_destroy(by_sha);
    return rc;
}

static int sweep(const struct folder *o, struct kn_err *err) {
    char path[KN_PATH_MAX];
    DIR *d = opendir(o->images);
    if (!d) return kn_err_set(err, KN_EIO, "%s: %s", o->images, strerror(errno));
    struct dirent *e;
    while ((e = readdir(d)))
        if ((is_temporary(e->d_name, PLACE_FRESH) || is_temporary(e->d_name, PLACE_KEPT)) &&
            kn_fs_join(path, sizeof path, o->images, e->d_name) == KN_OK)
            unlink(path);
    closedir(d);
    return KN_OK;
}

static bool is_old_engine(const struct folder_image *e) {
    return strcmp(e->engine, "kiln " KN_ENGINE_VERSION) != 0;
}

/* True if the old picture is of the class and the version of the engine that are asked for. */
static bool is_wanted(const struct old_image *img, const struct folder_ask *ask) {
    return img->e.status == KN_RESULT_DONE &&
           (!ask->pin_backend || strcmp(img->e.backend, ask->pin_backend) == 0) &&
           !(ask->rerender_old && is_old_engine(&img->e));
}

/* The old image whose picture becomes image i: one that nobody has taken, else one to copy from; NULL: none. */
static struct old_image *find_old(const struct earlier *a, size_t i, const struct folder_ask *ask,
                                  bool *copy) {
    struct old_image *first = kn_map_get(a->by_key, a->o->keys[i], sizeof(kn_digest)), *other = NULL;
    for (size_t at = first ? (size_t)(first - a->v) : NOBODY; at != NOBODY; at = a->v[at].next) {
        struct old_image *img = &a->v[at];
        if (!is_wanted(img, ask)) continue;
        look_at_picture(a, img);
        if (img->state != INTACT) continue;
        if (!img->used) {
            *copy = false;
            return img;
        }
        other = img;
    }
    *copy = true;
    return other;
}

static void take_over(struct folder *o, size_t i, const struct folder_image *e) {
    o->entries[i] = *e;
    gallery_note(o, i);
    o->changes++; /* the first flush writes down where it is now */
    o->done++;
    o->kept++;
    if (!is_old_engine(e)) return;
    o->kept_old++;
    snprintf(o->old_engine, sizeof o->old_engine, "%s", e->engine);
}

struct keeping {
    bool *moved;          /* image i waits under its name for a moment */
    size_t *copy_of;      /* image i is a copy of this one, or NOBODY */
    struct kn_map *taken; /* old image -> its image + 1, as an address into moved */
};

/* First, out of the way: what is kept and has another name now. */
static int set_apart(struct earlier *a, struct keeping *k, const struct folder_ask *ask, struct kn_err *err) {
    struct folder *o = a->o;
    char from[KN_PATH_MAX], to[PLACE_PATH_MAX], file[FOLDER_FILE_MAX];
    for (size_t i = 0; i < o->count; i++) {
        bool copy;
        struct old_image *img = find_old(a, i, ask, &copy);
        if (cli_interrupted) return kn_err_set(err, KN_ECANCELED, "interrupted");
        if (!img) continue;
        take_over(o, i, &img->e);
        if (copy) {
            k->copy_of[i] = (size_t)((bool *)kn_map_get(k->taken, &img, sizeof img) - k->moved);
            continue;
        }
        img->used = true;
        int rc = kn_map_put(k->taken, &img, sizeof img, &k->moved[i]);
        if (rc) return kn_err_set(err, rc, "%s", kn_err_words(rc));
        if (strcmp(img->file, folder_file(o, i, file)) == 0) continue;
        place_path(o, PLACE_KEPT, i, to);
        if (kn_fs_join(from, sizeof from, o->dir, img->file)) continue;
        if (rename(from, to)) return kn_err_set(err, KN_EIO, "%s: %s", to, strerror(errno));
        k->moved[i] = true;
    }
    for (size_t n = 0; n < a->loose_count; n++) {
        size_t i = a->loose[n].image;
        if (kn_fs_join(from, sizeof from, o->images, a->loose[n].name)) continue;
        if (o->entries[i].status || o->entries[i].loose) { /* there is one already */
            unlink(from);
            continue;
        }
        o->entries[i].loose = true;
        snprintf(to, sizeof to, "images/%s", a->loose[n].name);
        if (strcmp(to, folder_file(o, i, file)) == 0) continue;
        place_path(o, PLACE_KEPT, i, to);
        if (strcmp(from, to) != 0 && rename(from, to))
            return kn_err_set(err, KN_EIO, "%s: %s", to, strerror(errno));
        k->moved[i] = true;
    }
    return KN_OK;
}

/* Then what is not kept: kiln's own picture is removed, somebody's work is put aside. */
static int clear_away(struct earlier *a, struct kn_err *err) {
    char path[KN_PATH_MAX];
    int rc = KN_OK;
    for (size_t i = 0; rc == KN_OK && i < a->count; i++) {
        struct old_image *img = &a->v[i];
        if (img->used || !img->file[0]) continue;
        struct old_image *other = NULL;
        char *fold = names_fold(img->file);
        if (fold) other = kn_map_get(a->by_file, fold, strlen(fold));
        free(fold);
        if (other != img && other && other->used) continue;
        look_at_picture(a, img);
        if (img->state == CHANGED)
            rc = put_aside(a, img->file, err);
        else if (img->state == INTACT && kn_fs_join(path, sizeof path, a->o->dir, img->file) == KN_OK)
            unlink(path);
        img->state = MISSING;
    }
    if (a->aside > ASIDE_TOLD) cli_say("and %zu more pictures, likewise", a->aside - ASIDE_TOLD);
    return rc;
}

/* At last they get their names. */
static int settle(struct earlier *a, const struct keeping *k, struct kn_err *err) {
    struct folder *o = a->o;
    char from[PLACE_PATH_MAX], to[PLACE_PATH_MAX];
    int rc = KN_OK;
    for (size_t i = 0; rc == KN_OK && i < o->count; i++) {
        if (!k->moved[i]) continue;
        place_path(o, PLACE_KEPT, i, from);
        place_path(o, NULL, i, to);
        if (rename(from, to)) rc = kn_err_set(err, KN_EIO, "%s: %s", to, strerror(errno));
    }
    for (size_t i = 0; rc == KN_OK && i < o->count; i++) {
        if (k->copy_of[i] == NOBODY) continue;
        place_path(o, NULL, k->copy_of[i], from);
        rc = place_copy(o, i, from, err);
    }
    return rc;
}

static int keep(struct earlier *a, const struct folder_ask *ask, struct kn_err *err) {
    size_t n = a->o->count;
    struct keeping k = {.moved = calloc(n + 1, sizeof *k.moved),
                        .copy_of = malloc((n + 1) * sizeof *k.copy_of),
                        .taken = kn_map_create(a->count + 1)};
    int rc = k.moved && k.copy_of && k.taken ? KN_OK : no_memory(err);
    for (size_t i = 0; rc == KN_OK && i < n; i++) k.copy_of[i] = NOBODY;
    if (rc == KN_OK) rc = set_apart(a, &k, ask, err);
    if (rc == KN_OK) rc = clear_away(a, err);
    if (rc == KN_OK) rc = settle(a, &k, err);
    free(k.moved);
    free(k.copy_of);
    kn_map_destroy(k.taken);
    return rc;
}

int earlier_take(struct folder *o, const struct folder_ask *ask, struct kn_err *err) {
    struct earlier a = {.o = o, .batch = earlier_batch(o->dir)};
    int rc = read_manifest(&a, err);
    if (rc == KN_OK) rc = count_not_asked(&a, err);
    if (rc == KN_OK && !ask->replace && (a.not_asked || has_begun_another(&a, ask)))
        rc = refuse_other(&a, err);
    if (rc == KN_OK) rc = look_for_foreign(&a, err);
    if (rc == KN_OK) rc = kn_fs_mkdirs(o->images, 0777, err);
    if (rc == KN_OK && restore(&a)) rc = no_memory(err);
    if (rc == KN_OK) rc = keep(&a, ask, err);
    if (rc == KN_OK) rc = sweep(o, err);
    for (size_t i = 0; i < a.loose_count; i++) free(a.loose[i].name);
    free(a.loose);
    kn_map_destroy(a.by_key);
    kn_map_destroy(a.by_file);
    kn_map_destroy(a.parameters);
    free(a.v);
    free(a.keys);
    json_object_put(a.batch);
    return rc;
}
