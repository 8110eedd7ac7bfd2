/* See model.h. */
#include "cli/talk/model.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/farm/farmdir.h"

void models_fini(struct models *m) {
    free(m->v);
    free(m->known);
    *m = (struct models){0};
}

int models_of_farm(struct client *c, int wait_ms, struct models *out, struct kn_err *err) {
    uint64_t end = kn_clock_ms() + (uint64_t)wait_ms;
    *out = (struct models){0};
    for (;;) {
        struct kn_msg q = {.type = KN_MSG_MODELS_QUERY}, *r;
        int rc = client_call(c, &q, KN_MSG_MODEL_LIST, CLIENT_PATIENCE_MS, &r, err);
        if (rc) return rc;
        const struct kn_model_list *l = &r->u.model_list;
        snprintf(out->default_model, sizeof out->default_model, "%s", client_welcome(c)->default_model);
        if (l->count > 0) {
            out->v = calloc(l->count, sizeof *out->v);
            if (out->v) {
                memcpy(out->v, l->v, l->count * sizeof *out->v);
                out->count = l->count;
            } else {
                rc = kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
            }
        }
        if (rc == KN_OK && l->known_count > 0 && !out->known) {
            out->known = calloc(l->known_count, sizeof *out->known);
            if (out->known) {
                memcpy(out->known, l->known, l->known_count * sizeof *out->known);
                out->known_count = l->known_count;
            } else {
                rc = kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
            }
        }
        kn_msg_destroy(r);
        if (rc || out->count > 0 || kn_clock_ms() >= end) return rc;
        rc = client_sleep(c, 50, err);
        if (rc) return rc;
    }
}

const struct kn_model_info *models_find(const struct models *m, const char *name) {
    for (size_t i = 0; i < m->count; i++)
        if (strcmp(m->v[i].name, name) == 0) return &m->v[i];
    for (size_t i = 0; i < m->known_count; i++)
        if (strcmp(m->known[i].name, name) == 0) return &m->known[i];
    return NULL;
}

const struct kn_model_info *models_find_hash(const struct models *m, const uint8_t sha256[KN_SHA256_BYTES]) {
    for (size_t i = 0; i < m->count; i++)
        if (memcmp(m->v[i].sha256, sha256, KN_SHA256_BYTES) == 0) return &m->v[i];
    return NULL;
}

void models_list(const struct models *m, char *out, size_t out_max) {
    size_t n = 0;
    out[0] = '\0';
    if (m->count == 0) n = (size_t)snprintf(out, out_max, "none; no worker is there yet");
    for (size_t i = 0; i < m->count && n + KN_NAME_MAX + 24 < out_max; i++) {
        if (i == 8) {
            snprintf(out + n, out_max - n, " and %zu more", m->count - i);
            break;
        }
        n += (size_t)snprintf(out + n, out_max - n, "%s%s", i ? ", " : "", m->v[i].name);
    }
}

int model_default(const struct cli_options *o, char out[KN_NAME_MAX + 1], struct kn_err *err) {
    struct kn_model_info sim;
    const char *m = o->settings.set & KN_SET_MODEL ? o->settings.model : NULL;
    out[0] = '\0';
    if (model_is_simulated(o)) {
        int rc = model_describe(o->engine, &sim, err);
        if (rc == KN_OK) snprintf(out, KN_NAME_MAX + 1, "%s", sim.name);
        return rc;
    }
    char real[PATH_MAX];
    if (m && model_is_folder(m)) {
        if (!realpath(m, real)) return kn_err_set(err, KN_EINVAL, "--model %s: %s", m, strerror(errno));
        m = strrchr(real, '/') + 1;
    }
    if (m && snprintf(out, KN_NAME_MAX + 1, "%s", m) > KN_NAME_MAX)
        return kn_err_set(err, KN_ELIMIT, "--model: a model's name is longer than %d bytes", KN_NAME_MAX);
    return KN_OK;
}

bool model_is_simulated(const struct cli_options *o) {
    return o->engine && strncmp(o->engine, "sim", 3) == 0;
}

bool model_is_folder(const char *name) {
    struct stat st;
    return strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || stat(name, &st) == 0;
}

int model_check_folder(const char *path, struct kn_err *err) {
    struct stat st;
    if (stat(path, &st))
        return kn_err_set(err, errno == EACCES ? KN_EPERM : KN_EINVAL, "--model %s: %s", path,
                          strerror(errno));
    if (S_ISDIR(st.st_mode)) return KN_OK;
    return kn_err_set(
        err, KN_EINVAL,
        "--model %s: it is a file, and what is read is a folder in diffusers' layout: model_index.json, "
        "and below it unet/, vae/, text_encoder/ … with weights as .safetensors; diffusers' "
        "from_single_file() and save_pretrained() make one of a single file",
        path);
}

static bool is_model(const char *dir) {
    char path[KN_PATH_MAX];
    return kn_fs_join(path, sizeof path, dir, "model_index.json") == KN_OK && kn_fs_exists(path);
}

struct finding {
    const char *name; /* NULL: any */
    size_t count;
    char *path, *list;
    size_t list_len, list_max;
};

static void found(struct finding *f, const char *dir, const char *name) {
    if ((f->name && strcmp(f->name, name) != 0) || !is_model(dir)) return;
    if (f->count++ == 0) snprintf(f->path, KN_PATH_MAX, "%s", dir);
    if (f->list_len + strlen(name) + 3 < f->list_max)
        f->list_len += (size_t)snprintf(f->list + f->list_len, f->list_max - f->list_len, "%s%s",
                                        f->count > 1 ? ", " : "", name);
}

size_t models_local(const struct cli_options *o, const char *name, char path[KN_PATH_MAX], char *list,
                    size_t list_max) {
    struct finding f = {.name = name, .path = path, .list = list, .list_max = list_max};
    list[0] = '\0';
    for (size_t i = 0; i < o->model_dir_count; i++) {
        char *real = realpath(o->models[i], NULL), below[KN_PATH_MAX];
        if (!real) continue;
        if (is_model(real)) {
            found(&f, real, strrchr(real, '/') + 1);
        } else {
            DIR *d = opendir(real);
            struct dirent *e;
            while (d && (e = readdir(d)))
                if (e->d_name[0] != '.' && kn_fs_join(below, sizeof below, real, e->d_name) == KN_OK)
                    found(&f, below, e->d_name);
            if (d) closedir(d);
        }
        free(real);
    }
    return f.count;
}

static json_object *member(json_object *o, const char *name, json_type type) {
    json_object *v;
    return o && json_object_object_get_ex(o, name, &v) && json_object_is_type(v, type) ? v : NULL;
}

static uint32_t count_of(json_object *o, const char *name) {
    json_object *v = member(o, name, json_type_int);
    int64_t n = v ? json_object_get_int64(v) : 0;
    return n > 0 && n <= UINT32_MAX ? (uint32_t)n : 0;
}

static uint64_t bytes_of(json_object *o, const char *name) {
    json_object *v = member(o, name, json_type_int);
    int64_t n = v ? json_object_get_int64(v) : 0;
    return n > 0 ? (uint64_t)n : 0;
}

int model_parse(const char *text, size_t len, struct kn_model_info *out, struct kn_err *err) {
    struct json_tokener *tok = json_tokener_new_ex(8);
    json_object *o = tok && len < 65536 ? json_tokener_parse_ex(tok, text, (int)len) : NULL, *v, *d;
    int rc = KN_EPARSE;
    memset(out, 0, sizeof *out);
    if (!json_object_is_type(o, json_type_object)) goto out;
    d = member(o, "defaults", json_type_object);
    if (!(v = member(o, "name", json_type_string)) || strlen(json_object_get_string(v)) > KN_NAME_MAX)
        goto out;
    strcpy(out->name, json_object_get_string(v));
    if (!(v = member(o, "sha256", json_type_string)) ||
        kn_unhex(json_object_get_string(v), out->sha256, KN_SHA256_BYTES))
        goto out;
    out->size_multiple = count_of(o, "size_multiple");
    out->size_max = count_of(o, "size_max");
    json_object *memory = member(o, "memory", json_type_object);
    out->memory_weights = bytes_of(memory, "weights");
    out->memory_image = bytes_of(memory, "image");
    if ((v = member(o, "scheduler", json_type_string)))
        snprintf(out->scheduler, sizeof out->scheduler, "%s", json_object_get_string(v));
    if (!out->scheduler[0] && (!(v = member(d, "sampler", json_type_string)) ||
                               kn_sampler_parse(json_object_get_string(v), &out->defaults.sampler, NULL)))
        goto out;
    out->defaults.karras = (v = member(d, "karras", json_type_boolean)) && json_object_get_boolean(v);
    if (!(v = member(d, "schedule", json_type_string)) ||
        kn_schedule_parse(json_object_get_string(v), &out->defaults.schedule, NULL))
        goto out;
    if (!(v = member(d, "size", json_type_string)) ||
        kn_size_parse(json_object_get_string(v), &out->defaults.width, &out->defaults.height, NULL))
        goto out;
    out->defaults.steps = count_of(d, "steps");
    json_object *cfg;
    if (out->defaults.steps == 0 || !json_object_object_get_ex(d, "cfg", &cfg)) goto out;
    out->defaults.cfg = (float)json_object_get_double(cfg);
    rc = isfinite(out->defaults.cfg) ? KN_OK : KN_EPARSE;
out:
    json_object_put(o);
    if (tok) json_tokener_free(tok);
    return rc ? kn_err_set(err, rc, "kiln-worker --describe-model: cannot read its answer") : rc;
}

int model_describe(const char *dir, struct kn_model_info *out, struct kn_err *err) {
    int checked =
        strcmp(dir, "sim") == 0 || strncmp(dir, "sim:", 4) == 0 ? KN_OK : model_check_folder(dir, err);
    if (checked) return checked;
    char program[KN_PATH_MAX], answer[65536], words[1024];
    int rc = farmdir_sibling("kiln-worker", program, err), to_us[2], complaints[2];
    if (rc) return rc;
    if (pipe2(to_us, O_CLOEXEC) || pipe2(complaints, O_CLOEXEC))
        return kn_err_set(err, KN_EIO, "pipe: %s", strerror(errno));
    pid_t pid = fork();
    if (pid < 0) return kn_err_set(err, KN_EIO, "fork: %s", strerror(errno));
    if (pid == 0) {
        dup2(to_us[1], 1);
        dup2(complaints[1], 2);
        execl(program, program, "--describe-model", dir, (char *)NULL);
        _exit(127);
    }
    close(to_us[1]);
    close(complaints[1]);
    size_t n = 0, w = 0;
    ssize_t got;
    while (n < sizeof answer - 1 &&
           ((got = read(to_us[0], answer + n, sizeof answer - 1 - n)) > 0 || (got < 0 && errno == EINTR)))
        n += got > 0 ? (size_t)got : 0;
    while (w < sizeof words - 1 &&
           ((got = read(complaints[0], words + w, sizeof words - 1 - w)) > 0 || (got < 0 && errno == EINTR)))
        w += got > 0 ? (size_t)got : 0;
    close(to_us[0]);
    close(complaints[0]);
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    while (w > 0 && words[w - 1] == '\n') w--;
    words[w] = '\0';
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        const char *text = strncmp(words, "kiln-worker: ", 13) == 0 ? words + 13 : words;
        return kn_err_set(err, KN_EMODEL, "%s %s: %s", strncmp(dir, "sim", 3) == 0 ? "--engine" : "--model",
                          dir, text[0] ? text : "cannot be read");
    }
    return model_parse(answer, n, out, err);
}

int model_folders_choose(const struct cli_options *o, struct model_folders *out, struct kn_err *err) {
    static char paths[CLI_MODELS_MAX + 1][KN_PATH_MAX];
    memset(out, 0, sizeof *out);
    if (model_is_simulated(o)) return KN_OK;
    for (size_t i = 0; i < o->model_dir_count; i++) {
        if (!realpath(o->models[i], paths[i]))
            return kn_err_set(err, KN_EINVAL, "--models %s: %s", o->models[i], strerror(errno));
        out->models[out->count++] = paths[i];
    }
    const char *m = o->settings.set & KN_SET_MODEL ? o->settings.model : NULL;
    char *path = paths[CLI_MODELS_MAX];
    if (m && model_is_folder(m)) {
        int rc = model_check_folder(m, err);
        if (rc) return rc;
        if (!realpath(m, path)) return kn_err_set(err, KN_EINVAL, "--model %s: %s", m, strerror(errno));
        out->model = path;
    } else if (farmdir_shipped_model(path) &&
               (!m ? out->count == 0 : strcmp(strrchr(path, '/') + 1, m) == 0)) {
        out->model = path;
    } else if (out->count == 0) {
        return kn_err_set(err, KN_EMODEL, "no model: say --model DIR or --models DIR");
    }
    return KN_OK;
}

static int describe_into(struct models *out, const char *dir, struct kn_err *err) {
    struct kn_model_info *v = realloc(out->v, (out->count + 1) * sizeof *v);
    if (!v) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    out->v = v;
    int rc = model_describe(dir, &v[out->count], err);
    out->count += rc == KN_OK;
    return rc;
}

int model_folders_describe(const struct model_folders *f, struct models *out, struct kn_err *err) {
    struct kn_err left_out;
    *out = (struct models){0};
    int rc = f->model ? describe_into(out, f->model, err) : KN_OK;
    for (size_t i = 0; i < f->count && rc == KN_OK; i++) {
        char below[KN_PATH_MAX];
        DIR *d = is_model(f->models[i]) ? NULL : opendir(f->models[i]);
        if (!d) rc = describe_into(out, f->models[i], &left_out) == KN_ENOMEM ? KN_ENOMEM : KN_OK;
        for (struct dirent *e; d && (e = readdir(d)) != NULL && rc == KN_OK;)
            if (e->d_name[0] != '.' && kn_fs_join(below, sizeof below, f->models[i], e->d_name) == KN_OK &&
                is_model(below) && describe_into(out, below, &left_out) == KN_ENOMEM)
                rc = kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
        if (d) closedir(d);
    }
    return rc;
}
