/* See gallery.h; the page itself is gallery.html. */
#include "cli/folder/gallery.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/folder/gallery_page.h"
#include "cli/folder/images.h"
#include "cli/text.h"

#define PART_BYTES_MAX (64u << 20) /* 1,000 images with the longest prompts, escaped */
#define LOOK_BACK 64 /* how many settings are compared before an image gets an entry of its own */

int gallery_init(struct folder *o, struct kn_err *err) {
    struct gallery *g = &o->gallery;
    g->count = (o->count + GALLERY_PART - 1) / GALLERY_PART;
    g->changes = calloc(g->count + 1, sizeof *g->changes);
    g->written = calloc(g->count + 1, sizeof *g->written);
    g->run = kn_wall_ms();
    if (!g->changes || !g->written) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    return KN_OK;
}

void gallery_fini(struct folder *o) {
    free(o->gallery.changes);
    free(o->gallery.written);
    memset(&o->gallery, 0, sizeof o->gallery);
}

void gallery_note(struct folder *o, size_t index) {
    o->gallery.changes[index / GALLERY_PART]++;
}

/* JSON into a script: what could end it, or what JavaScript once took for the end of a line, is escaped. In
 * JSON that comes from a writer these characters stand inside strings only. */
static int append_script(struct kn_buf *out, const char *json, size_t len) {
    int rc = KN_OK;
    size_t from = 0;
    for (size_t i = 0; rc == KN_OK && i < len; i++) {
        const char *instead = NULL;
        size_t skip = 1;
        if (json[i] == '<')
            instead = "\\u003c";
        else if (json[i] == '>')
            instead = "\\u003e";
        else if (json[i] == '&')
            instead = "\\u0026";
        else if (i + 2 < len && memcmp(json + i, "\xe2\x80\xa8", 3) == 0)
            instead = "\\u2028", skip = 3;
        else if (i + 2 < len && memcmp(json + i, "\xe2\x80\xa9", 3) == 0)
            instead = "\\u2029", skip = 3;
        if (!instead) continue;
        rc = kn_buf_append(out, json + from, i - from);
        if (rc == KN_OK) rc = kn_buf_appends(out, instead);
        i += skip - 1;
        from = i + 1;
    }
    return rc ? rc : kn_buf_append(out, json + from, len - from);
}

static int append_object(struct kn_buf *out, json_object *v) {
    size_t len = 0;
    const char *text =
        json_object_to_json_string_length(v, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, &len);
    return text ? append_script(out, text, len) : KN_ENOMEM;
}

static int replace(const struct folder *o, const char *name, const struct kn_buf *b, struct kn_err *err) {
    char path[KN_PATH_MAX];
    int rc = kn_fs_join(path, sizeof path, o->dir, name);
    if (rc) return kn_err_set(err, rc, "%s: the path is too long", name);
    return kn_fs_replace(path, b->data, b->len, false, err);
}

/* ---- the page ---- */

bool gallery_is_part(const char *name) {
    size_t digits = strspn(name, "0123456789");
    return digits >= 4 && digits <= 6 && strcmp(name + digits, ".js") == 0;
}

/* A file of the gallery that a killed kiln was replacing. */
static bool is_temp(const char *name) {
    char whole[NAME_MAX + 1];
    const char *temp = strstr(name, ".js.tmp.");
    snprintf(whole, sizeof whole, "%.*s", temp ? (int)(temp - name) + 3 : 0, name);
    return temp && (gallery_is_part(whole) || strcmp(whole, "status.js") == 0);
}

int gallery_write_page(struct folder *o, struct kn_err *err) {
    char dir[KN_PATH_MAX], path[KN_PATH_MAX];
    int rc = kn_fs_join(dir, sizeof dir, o->dir, "gallery");
    if (rc) return kn_err_set(err, rc, "gallery: the path is too long");
    rc = kn_fs_mkdirs(dir, 0777, err);
    if (rc) return rc;
    DIR *d = opendir(dir);
    if (!d) return kn_err_set(err, KN_EIO, "%s: %s", dir, strerror(errno));
    struct dirent *entry;
    while ((entry = readdir(d)))
        if ((gallery_is_part(entry->d_name) || is_temp(entry->d_name)) &&
            kn_fs_join(path, sizeof path, dir, entry->d_name) == KN_OK)
            unlink(path);
    closedir(d);
    memset(o->gallery.written, 0, o->gallery.count * sizeof *o->gallery.written);
    rc = kn_fs_join(path, sizeof path, o->dir, "index.html");
    if (rc) return kn_err_set(err, rc, "index.html: the path is too long");
    kn_fs_remove_temps(path, 0);
    return kn_fs_replace(path, gallery_page, gallery_page_len, false, err);
}

/* ---- the data ---- */

/* Settings that thousands of images share stand once in a part: returns the place of image i's in `table`.
 * `seen` names an image for each entry. */
static size_t settings_of(const struct folder *o, size_t i, size_t *seen, json_object *table) {
    const struct kn_task *t = kn_tasks_at(o->tasks, i);
    const struct folder_image *e = &o->entries[i];
    size_t count = json_object_array_length(table);
    for (size_t k = count; k-- > 0 && count - k <= LOOK_BACK;) {
        const struct kn_task *u = kn_tasks_at(o->tasks, seen[k]);
        const struct folder_image *f = &o->entries[seen[k]];
        if (t->sampler == u->sampler && t->schedule == u->schedule && t->steps == u->steps &&
            memcmp(&t->cfg, &u->cfg, sizeof t->cfg) == 0 && t->width == u->width && t->height == u->height &&
            t->model_index == u->model_index && e->backend == f->backend && e->engine == f->engine &&
            e->worker == f->worker)
            return k;
    }
    seen[count] = i;
    char hex[KN_SHA256_HEX];
    const struct kn_model_info *m = &o->models[t->model_index];
    kn_hex(m->sha256, KN_SHA256_BYTES, hex);
    hex[10] = '\0'; /* as A1111 shortens it */
    json_object *s = json_object_new_array();
    json_object_array_add(s, json_object_new_string(kn_sampler_name(t->sampler)));
    json_object_array_add(s, json_object_new_string(kn_schedule_name(t->schedule)));
    json_object_array_add(s, json_object_new_int64(t->steps));
    json_object_array_add(s, text_json_float(t->cfg));
    json_object_array_add(s, json_object_new_int64(t->width));
    json_object_array_add(s, json_object_new_int64(t->height));
    json_object_array_add(s, json_object_new_string(m->name));
    json_object_array_add(s, json_object_new_string(hex));
    json_object_array_add(s, json_object_new_string(e->backend));
    json_object_array_add(s, json_object_new_string(e->engine));
    json_object_array_add(s, json_object_new_string(e->worker));
    json_object_array_add(table, s);
    return count;
}

/* [index, status, prompt, negative, seed, settings, attempt, render_ms, digest's first digits, flat, error,
 * extra, name]; the name only where it is not the number; the seed is text, since JavaScript's numbers end at 2^53. */
static json_object *row_of(const struct folder *o, size_t i, size_t settings) {
    const struct kn_task *t = kn_tasks_at(o->tasks, i);
    const struct folder_image *e = &o->entries[i];
    char text[KN_SHA256_HEX];
    json_object *r = json_object_new_array();
    json_object_array_add(r, json_object_new_int64((int64_t)i));
    json_object_array_add(r, json_object_new_int64(e->status));
    json_object_array_add(r, json_object_new_string(t->prompt));
    json_object_array_add(r, json_object_new_string(t->negative));
    snprintf(text, sizeof text, "%llu", (unsigned long long)t->seed);
    json_object_array_add(r, json_object_new_string(text));
    json_object_array_add(r, json_object_new_int64((int64_t)settings));
    json_object_array_add(r, json_object_new_int64(e->attempt));
    json_object_array_add(r, json_object_new_int64(e->render_ms));
    kn_hex(e->sha256, 6, text);
    json_object_array_add(r, json_object_new_string(e->status == KN_RESULT_DONE ? text : ""));
    json_object_array_add(r, json_object_new_int64(e->flat));
    json_object_array_add(r, json_object_new_string(e->error));
    json_object *extra = NULL;
    if (t->extra) {
        struct json_tokener *tok = json_tokener_new_ex(32);
        extra = tok ? json_tokener_parse_ex(tok, t->extra, (int)strlen(t->extra)) : NULL;
        if (tok) json_tokener_free(tok);
    }
    json_object_array_add(r, extra);
    if (o->names) {
        char file[FOLDER_FILE_MAX];
        json_object_array_add(r, json_object_new_string(folder_file(o, i, file) + strlen("images/")));
    }
    return r;
}

static int write_part(struct folder *o, size_t part, struct kn_err *err) {
    size_t seen[GALLERY_PART], first = part * GALLERY_PART, end = first + GALLERY_PART;
    if (end > o->count) end = o->count;
    struct kn_buf b, rows;
    kn_buf_init(&b, PART_BYTES_MAX);
    kn_buf_init(&rows, PART_BYTES_MAX);
    json_object *table = json_object_new_array();
    int rc = KN_OK;
    for (size_t i = first; rc == KN_OK && i < end; i++) {
        if (!o->entries[i].status) continue;
        json_object *r = row_of(o, i, settings_of(o, i, seen, table));
        if (rows.len > 0) rc = kn_buf_appends(&rows, ",\n");
        if (rc == KN_OK) rc = append_object(&rows, r);
        json_object_put(r);
    }
    if (rc == KN_OK) rc = kn_buf_appendf(&b, "kiln.part(%zu,%u,\n", part, o->gallery.changes[part]);
    if (rc == KN_OK) rc = append_object(&b, table);
    if (rc == KN_OK) rc = kn_buf_appends(&b, ",[\n");
    if (rc == KN_OK && rows.len > 0) rc = kn_buf_append(&b, rows.data, rows.len);
    if (rc == KN_OK) rc = kn_buf_appends(&b, "\n]);\n");
    json_object_put(table);
    char name[40];
    snprintf(name, sizeof name, "gallery/%04zu.js", part);
    if (rc == KN_OK)
        rc = replace(o, name, &b, err);
    else
        kn_err_set(err, rc, "%s: %s", name, kn_err_words(rc));
    kn_buf_fini(&rows);
    kn_buf_fini(&b);
    return rc;
}

int gallery_write_status(struct folder *o, struct kn_err *err) {
    const struct gallery *g = &o->gallery;
    json_object *s = json_object_new_object(), *parts = json_object_new_array();
    char run[32];
    snprintf(run, sizeof run, "%llu", (unsigned long long)g->run);
    json_object_object_add(s, "run", json_object_new_string(run));
    json_object_object_add(s, "name", json_object_new_string(o->name));
    json_object_object_add(s, "id", json_object_new_string(o->id));
    json_object_object_add(s, "kiln", json_object_new_string(KILN_VERSION));
    json_object_object_add(s, "count", json_object_new_int64((int64_t)o->count));
    json_object_object_add(s, "done", json_object_new_int64((int64_t)o->done));
    json_object_object_add(s, "failed", json_object_new_int64((int64_t)o->failed));
    json_object_object_add(s, "cancelled", json_object_new_int64((int64_t)o->cancelled));
    json_object_object_add(s, "kept", json_object_new_int64((int64_t)o->kept));
    json_object_object_add(s, "images_per_s", text_json_rate((double)o->images_per_s));
    json_object_object_add(s, "eta_ms", json_object_new_int64(o->eta_ms));
    json_object_object_add(s, "finished", json_object_new_boolean(o->finished));
    json_object_object_add(s, "created_ms", json_object_new_int64((int64_t)o->created_wall_ms));
    json_object_object_add(s, "updated_ms", json_object_new_int64((int64_t)kn_wall_ms()));
    json_object_object_add(s, "part", json_object_new_int64(GALLERY_PART));
    for (size_t i = 0; i < g->count; i++) json_object_array_add(parts, json_object_new_int64(g->written[i]));
    json_object_object_add(s, "parts", parts);
    struct kn_buf b;
    kn_buf_init(&b, PART_BYTES_MAX);
    int rc = kn_buf_appends(&b, "kiln.status(");
    if (rc == KN_OK) rc = append_object(&b, s);
    if (rc == KN_OK) rc = kn_buf_appends(&b, ");\n");
    json_object_put(s);
    if (rc == KN_OK)
        rc = replace(o, "gallery/status.js", &b, err);
    else
        kn_err_set(err, rc, "gallery/status.js: %s", kn_err_words(rc));
    kn_buf_fini(&b);
    return rc;
}

int gallery_write_data(struct folder *o, struct kn_err *err) {
    struct gallery *g = &o->gallery;
    int rc = KN_OK;
    for (size_t i = 0; rc == KN_OK && i < g->count; i++) {
        if (g->written[i] == g->changes[i]) continue;
        rc = write_part(o, i, err);
        if (rc == KN_OK) g->written[i] = g->changes[i];
    }
    return rc ? rc : gallery_write_status(o, err);
}
