/* See models.h. */
#include "worker/models.h"

#include <dirent.h>
#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

/* Where the hashes of models are remembered; NULL: nowhere. */
static const char *cache_dir(char *out, size_t max) {
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (xdg && xdg[0] == '/')
        snprintf(out, max, "%s/kiln", xdg);
    else if (home && home[0] == '/')
        snprintf(out, max, "%s/.cache/kiln", home);
    else
        return NULL;
    return out;
}

static bool is_model(const char *dir) {
    char path[KN_PATH_MAX];
    return kn_fs_join(path, sizeof path, dir, "model_index.json") == 0 && kn_fs_exists(path);
}

static int add(struct model_list *l, const struct kn_model_info *info, const char *dir, struct kn_err *err) {
    for (size_t i = 0; i < l->count; i++)
        if (memcmp(l->v[i].info.sha256, info->sha256, KN_SHA256_BYTES) == 0) return 0;
    if (l->count == KN_MODELS_PER_WORKER_MAX)
        return kn_err_set(err, KN_ELIMIT, "more than %d models", KN_MODELS_PER_WORKER_MAX);
    if (l->count == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 8;
        struct engine_model *v = realloc(l->v, cap * sizeof *v);
        if (!v) return kn_err_set(err, KN_ENOMEM, "out of memory");
        l->v = v;
        l->cap = cap;
    }
    char *copy = dir ? realpath(dir, NULL) : NULL;
    if (dir && !copy) return kn_err_set(err, KN_EIO, "%s: %s", dir, strerror(errno));
    l->v[l->count++] = (struct engine_model){.info = *info, .dir = copy};
    return 0;
}

int models_add(struct model_list *l, const struct kn_model_info *info, struct kn_err *err) {
    return add(l, info, NULL, err);
}

int models_add_folder(struct model_list *l, const char *dir, struct kn_err *err) {
    struct kn_model_info info;
    char cache[KN_PATH_MAX];
    int rc = kiln_model_describe(dir, cache_dir(cache, sizeof cache), &info, err);
    return rc ? rc : add(l, &info, dir, err);
}

int models_add_tree(struct model_list *l, const char *dir, struct kn_err *err) {
    if (is_model(dir)) return models_add_folder(l, dir, err);
    struct dirent **names = NULL;
    int n = scandir(dir, &names, NULL, alphasort), rc = 0; /* sorted: the list is the same each time */
    if (n < 0) return kn_err_set(err, errno == ENOENT ? KN_ENOENT : KN_EIO, "%s: %s", dir, strerror(errno));
    size_t found = 0;
    for (int i = 0; i < n; i++) {
        char path[KN_PATH_MAX];
        struct kn_err why = {0};
        if (rc == 0 && names[i]->d_name[0] != '.' &&
            kn_fs_join(path, sizeof path, dir, names[i]->d_name) == 0 && is_model(path)) {
            found++;
            int bad = models_add_folder(l, path, &why);
            if (bad == KN_ELIMIT || bad == KN_ENOMEM)
                rc = kn_err_set(err, bad, "%s: %s", dir, why.text);
            else if (bad)
                kn_warn("model_left_out dir=%s reason=\"%s\"", path, why.text);
        }
        free(names[i]);
    }
    free(names);
    if (rc == 0 && found == 0)
        rc = kn_err_set(err, KN_ENOENT, "%s: no model is in it (no model_index.json)", dir);
    return rc;
}

void models_fini(struct model_list *l) {
    for (size_t i = 0; i < l->count; i++) free(l->v[i].dir);
    free(l->v);
    *l = (struct model_list){0};
}

int models_describe(const struct kn_model_info *m, struct kn_buf *out) {
    char hex[KN_SHA256_HEX], size[32], cfg[32];
    json_object *o = json_object_new_object(), *d = json_object_new_object();
    const struct kn_defaults *f = &m->defaults;
    kn_hex(m->sha256, KN_SHA256_BYTES, hex);
    snprintf(size, sizeof size, "%ux%u", f->width, f->height);
    snprintf(cfg, sizeof cfg, "%.9g", (double)f->cfg);
    json_object_object_add(o, "name", json_object_new_string(m->name));
    json_object_object_add(o, "sha256", json_object_new_string(hex));
    json_object_object_add(o, "size_multiple", json_object_new_int64(m->size_multiple));
    json_object_object_add(o, "size_max", json_object_new_int64(m->size_max));
    /* a folder whose scheduler is none of our samplers says its name instead */
    if (m->scheduler[0]) json_object_object_add(o, "scheduler", json_object_new_string(m->scheduler));
    json_object_object_add(d, "sampler",
                           f->sampler ? json_object_new_string(kn_sampler_name(f->sampler)) : NULL);
    json_object_object_add(d, "schedule", json_object_new_string(kn_schedule_name(f->schedule)));
    json_object_object_add(d, "karras", json_object_new_boolean(f->karras));
    json_object_object_add(d, "steps", json_object_new_int64(f->steps));
    json_object_object_add(d, "cfg", json_object_new_double_s((double)f->cfg, cfg));
    json_object_object_add(d, "size", json_object_new_string(size));
    json_object_object_add(o, "defaults", d);
    if (m->memory_weights) {
        json_object *memory = json_object_new_object();
        json_object_object_add(memory, "weights", json_object_new_uint64(m->memory_weights));
        json_object_object_add(memory, "image", json_object_new_uint64(m->memory_image));
        json_object_object_add(o, "memory", memory);
    }
    int rc = kn_buf_appends(out, json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
    if (rc == 0) rc = kn_buf_appends(out, "\n");
    json_object_put(o);
    return rc;
}
