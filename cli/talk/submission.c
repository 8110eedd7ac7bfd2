/* See submission.h. */
#include "cli/talk/submission.h"

#include <ctype.h>
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/utf8.h"
#include "cli/farm/farmdir.h"
#include "cli/talk/batch.h"
#include "cli/text.h"

#define REQUEST_INPUTS_MAX 16
#define SUBMIT_TRIES 5
#define SHIPPED_MODEL "tiny"

/* "task 17: steps: …" -> "prompts.txt:18: steps: …" for a person, who counts lines of files. */
static int name_line(const struct submission *sub, struct kn_err *err) {
    size_t task;
    int n = 0;
    if (sscanf(err->text, "task %zu: %n", &task, &n) != 1 || n == 0 || task >= sub->tasks.count)
        return err->code;
    char rest[KN_ERR_TEXT_MAX];
    snprintf(rest, sizeof rest, "%s", err->text + n);
    size_t k = sub->input_count;
    while (k > 0 && (sub->first[k - 1] > task)) k--;
    const char *file = k > 0 ? sub->inputs[k - 1] : NULL;
    if (!file) return kn_err_set(err, err->code, "prompt %zu: %s", task + 1, rest);
    return kn_err_set(err, err->code, "%s:%u: %s", strcmp(file, "-") == 0 ? "stdin" : file,
                      sub->tasks.v[task].line, rest);
}

static int remember_input(struct submission *sub, const char *file) {
    sub->inputs[sub->input_count] = file;
    sub->first[sub->input_count++] = sub->tasks.count;
    return KN_OK;
}

/* File names may be any bytes; what travels and what stands in JSON is UTF-8. */
static void make_utf8(char *s) {
    if (kn_utf8_span(s, strlen(s)) == strlen(s)) return;
    for (; *s; s++)
        if ((unsigned char)*s >= 0x80) *s = '?';
}

static void note_source(struct submission *sub, const struct cli_options *o) {
    kn_digest d;
    struct kn_sha256 *h = kn_sha256_create();
    if (!h) return; /* a new seed, then */
    for (int i = 0; i < o->arg_count; i++) kn_sha256_update(h, o->args[i], strlen(o->args[i]) + 1);
    kn_sha256_update(h, "", 1);
    for (size_t i = 0; i < o->prompt_count; i++)
        kn_sha256_update(h, o->prompts[i], strlen(o->prompts[i]) + 1);
    kn_sha256_final(h, d);
    kn_hex(d, sizeof d, sub->source);
}

/* Over the tasks as they were read, before the command line's settings are applied. */
static void note_contents(struct submission *sub) {
    kn_digest d;
    struct kn_sha256 *h = kn_sha256_create();
    if (!h) return;
    for (size_t i = 0; i < sub->tasks.count; i++) {
        const struct kn_task *t = kn_tasks_at(&sub->tasks, i);
        const char *const texts[] = {t->prompt, t->set & KN_SET_NEGATIVE ? t->negative : "",
                                     t->set & KN_SET_MODEL ? t->model : "", t->extra ? t->extra : ""};
        char numbers[200];
        int n = snprintf(numbers, sizeof numbers, "%x %llu %u %u %u %u %u %a", t->set,
                         (unsigned long long)t->seed, t->steps, t->width, t->height, (unsigned)t->sampler,
                         (unsigned)t->schedule, (double)t->cfg);
        for (size_t k = 0; k < sizeof texts / sizeof texts[0]; k++)
            kn_sha256_update(h, texts[k], strlen(texts[k]) + 1);
        kn_sha256_update(h, numbers, (size_t)n + 1);
    }
    kn_sha256_final(h, d);
    kn_hex(d, sizeof d, sub->contents);
}

int submission_read(const struct cli_options *o, struct submission *out, struct kn_err *err) {
    memset(out, 0, sizeof *out);
    size_t inputs = (size_t)o->arg_count + 1;
    out->inputs = calloc(inputs, sizeof *out->inputs);
    out->first = calloc(inputs, sizeof *out->first);
    if (!out->inputs || !out->first) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    if (o->arg_count == 0 && o->prompt_count == 0)
        return kn_err_set(err, KN_EINVAL, "no prompts: give a file, - or -p \"text\"");
    int rc = KN_OK, from_stdin = 0;
    for (int i = 0; i < o->arg_count; i++) {
        if (strcmp(o->args[i], "-") == 0 && from_stdin++)
            return kn_err_set(err, KN_EINVAL, "-: standard input can be read once only");
        size_t before = out->tasks.count;
        remember_input(out, o->args[i]);
        rc = kn_prompts_read(o->args[i], o->format, o->strict, &out->tasks, err);
        if (rc) return rc;
        if (out->tasks.count == before) return kn_err_set(err, KN_EPARSE, "%s: no prompt in it", o->args[i]);
    }
    remember_input(out, NULL);
    for (size_t i = 0; i < o->prompt_count; i++) {
        rc = kn_tasks_add(&out->tasks, o->prompts[i], err);
        if (rc) return kn_err_prefix(err, "-p");
    }
    note_contents(out);
    rc = kn_tasks_apply(&out->tasks,
                        &(struct kn_task){.set = o->settings.set & ~(uint32_t)KN_SET_SEED,
                                          .negative = o->settings.negative,
                                          .model = o->settings.model,
                                          .sampler = o->settings.sampler,
                                          .schedule = o->settings.schedule,
                                          .steps = o->settings.steps,
                                          .cfg = o->settings.cfg,
                                          .width = o->settings.width,
                                          .height = o->settings.height},
                        err);
    if (rc) return name_line(out, err);

    if (o->name) {
        snprintf(out->name, sizeof out->name, "%s", o->name);
    } else if (o->arg_count > 0 && strcmp(o->args[0], "-") != 0) {
        char *copy = strdup(o->args[0]);
        if (copy) text_fit(basename(copy), 40, 0, out->name, sizeof out->name);
        free(copy);
    } else {
        text_fit(out->tasks.v[0].prompt, 40, 0, out->name, sizeof out->name);
    }
    make_utf8(out->name);
    note_source(out, o);
    return KN_OK;
}

uint64_t draw_seed(void) {
    uint32_t v = 0;
    if (getrandom(&v, sizeof v, 0) != (ssize_t)sizeof v) v = (uint32_t)(kn_wall_ms() * 2654435761u);
    return v;
}

/* Adds a model to the batch's table, once. path: "" when the farm has it. */
static int add_model(struct submission *sub, const struct kn_model_info *m, const char *path, uint32_t *index,
                     struct kn_err *err) {
    for (size_t i = 0; i < sub->model_count; i++) {
        if (memcmp(sub->models[i].sha256, m->sha256, KN_SHA256_BYTES) != 0) continue;
        *index = (uint32_t)i;
        return KN_OK;
    }
    if (sub->model_count == KN_MODELS_PER_BATCH_MAX)
        return kn_err_set(err, KN_ELIMIT, "model: more than %d models in a batch", KN_MODELS_PER_BATCH_MAX);
    if (path[0] && !(sub->paths[sub->model_count] = realpath(path, NULL)))
        return kn_err_set(err, KN_EMODEL, "model: %s: %s", path, strerror(errno));
    sub->models[sub->model_count] = *m;
    *index = (uint32_t)sub->model_count++;
    return KN_OK;
}

/* The model that `name` means (NULL: none was named) on a farm that is up. */
static int find_on_farm(const struct models *farm, const char *name, struct kn_model_info *out,
                        struct kn_err *err) {
    char list[512];
    const struct kn_model_info *m = NULL;
    models_list(farm, list, sizeof list);
    if (!name) {
        const char *meant = farm->default_model[0] ? farm->default_model : SHIPPED_MODEL;
        m = models_find(farm, meant);
        if (!m)
            return kn_err_set(err, KN_EMODEL, "model: not given, and %s, %s, is not there; this farm has %s",
                              farm->default_model[0] ? "this farm's default" : "the one that ships", meant,
                              list);
    } else if (!(m = models_find(farm, name)) && model_is_folder(name)) {
        int rc = model_describe(name, out, err);
        if (rc) return rc;
        m = models_find_hash(farm, out->sha256);
        if (!m) return KN_OK; /* nobody on the farm has it yet: its batch waits for a worker that has */
    }
    if (!m) return kn_err_set(err, KN_EMODEL, "model: %s is not there; this farm has %s", name, list);
    *out = *m;
    return KN_OK;
}

/* The same for a private farm that is yet to be started: a folder of this machine; *path gets it. */
static int find_here(const struct cli_options *o, const char *name, struct kn_model_info *out,
                     char path[KN_PATH_MAX], struct kn_err *err) {
    char list[512];
    path[0] = '\0';
    if (model_is_simulated(o)) {
        int rc = model_describe(o->engine, out, err);
        if (rc == KN_OK && name && strcmp(name, out->name) != 0)
            return kn_err_set(err, KN_EMODEL, "model: %s is not there; the simulated engine has: %s", name,
                              out->name);
        return rc;
    }
    if (name && model_is_folder(name)) {
        snprintf(path, KN_PATH_MAX, "%s", name);
    } else if (o->model_dir_count > 0) {
        size_t n = models_local(o, name, path, list, sizeof list);
        if (n == 0 && name && farmdir_shipped_model(path) && strcmp(strrchr(path, '/') + 1, name) == 0) n = 1;
        if (n > 1)
            return kn_err_set(err, KN_EMODEL, "model: %s, and --models has several: %s",
                              name ? "by a name alone" : "not given", list);
        if (n == 0) {
            models_local(o, NULL, path, list, sizeof list);
            return kn_err_set(err, KN_EMODEL, "model: %s%s--models has %s", name ? name : "",
                              name ? " is not there; " : "none given; ", list[0] ? list : "none");
        }
    } else {
        bool shipped = farmdir_shipped_model(path);
        if (name && (!shipped || strcmp(strrchr(path, '/') + 1, name) != 0))
            return kn_err_set(err, KN_EMODEL,
                              "model: %s is not a folder, and there is no --models to look for it in", name);
        if (!shipped)
            return kn_err_set(err, KN_EMODEL,
                              "model: not given, and the one that ships is not there; say --model DIR");
    }
    return model_describe(path, out, err);
}

static int write_request(struct submission *sub, const struct cli_options *o, struct kn_err *err) {
    json_object *r = json_object_new_object(), *in = json_object_new_array(), *s = json_object_new_object();
    for (size_t k = 0; k < sub->input_count && k < REQUEST_INPUTS_MAX; k++)
        if (sub->inputs[k]) {
            char name[KN_PATH_MAX];
            snprintf(name, sizeof name, "%s", sub->inputs[k]);
            make_utf8(name);
            json_object_array_add(in, json_object_new_string(name));
        }
    json_object_object_add(r, "name", json_object_new_string(sub->name));
    json_object_object_add(r, "inputs", in);
    json_object_object_add(r, "prompts", json_object_new_int64((int64_t)o->prompt_count));
    json_object_object_add(r, "source", json_object_new_string(sub->source));
    json_object_object_add(r, "contents", json_object_new_string(sub->contents));
    json_object_object_add(r, "images", json_object_new_int64((int64_t)o->images));
    json_object_object_add(r, "seed", json_object_new_uint64(sub->seed));
    json_object_object_add(r, "seed_drawn", json_object_new_boolean(sub->seed_drawn));
    uint32_t set = o->settings.set;
    if (set & KN_SET_SEED_EACH) json_object_object_add(r, "seed_each", json_object_new_boolean(true));
    if (set & KN_SET_MODEL) json_object_object_add(s, "model", json_object_new_string(o->settings.model));
    if (set & KN_SET_STEPS) json_object_object_add(s, "steps", json_object_new_int64(o->settings.steps));
    if (set & KN_SET_CFG) json_object_object_add(s, "cfg", text_json_float(o->settings.cfg));
    if (set & KN_SET_SIZE) {
        char size[32];
        snprintf(size, sizeof size, "%ux%u", o->settings.width, o->settings.height);
        json_object_object_add(s, "size", json_object_new_string(size));
    }
    if (set & KN_SET_SAMPLER)
        json_object_object_add(s, "sampler", json_object_new_string(kn_sampler_name(o->settings.sampler)));
    if (set & KN_SET_SCHEDULE)
        json_object_object_add(s, "schedule", json_object_new_string(kn_schedule_name(o->settings.schedule)));
    if (set & KN_SET_NEGATIVE)
        json_object_object_add(s, "negative", json_object_new_string(o->settings.negative));
    json_object_object_add(r, "settings", s);
    if (o->pin_backend) json_object_object_add(r, "pin_backend", json_object_new_string(o->pin_backend));
    if (o->priority) json_object_object_add(r, "priority", json_object_new_int(o->priority));
    struct kn_buf b;
    kn_buf_init(&b, 1u << 20);
    int rc = text_json(r, &b);
    json_object_put(r);
    sub->request = b.data;
    return rc ? kn_err_set(err, rc, "%s", kn_err_words(rc)) : KN_OK;
}

int submission_resolve(struct submission *sub, const struct cli_options *o, const struct models *farm,
                       uint64_t seed, bool seed_drawn, struct kn_err *err) {
    sub->seed = seed;
    sub->seed_drawn = seed_drawn;
    /* First with any seed and before images are counted out: a task is still a line of a file. */
    struct { /* models are found once, however often and in what turn the lines name them */
        const char *name;
        uint32_t index;
    } known[KN_MODELS_PER_BATCH_MAX + 1];
    size_t known_count = 0;
    for (size_t i = 0; i < sub->tasks.count; i++) {
        struct kn_task *t = kn_tasks_edit(&sub->tasks, i), trial;
        const char *name = t->set & KN_SET_MODEL ? t->model : NULL;
        uint32_t index = 0;
        size_t k = 0;
        int rc = KN_OK;
        bool have; /* its model */
        while (k < known_count &&
               (known[k].name && name ? strcmp(known[k].name, name) != 0 : known[k].name != name))
            k++;
        if (k < known_count) {
            index = known[k].index;
        } else {
            struct kn_model_info m;
            char path[KN_PATH_MAX] = "";
            rc = farm ? find_on_farm(farm, name, &m, err) : find_here(o, name, &m, path, err);
            if (farm && !name && farm->default_model[0])
                memcpy(sub->default_model, farm->default_model, sizeof sub->default_model);
            if (rc == KN_OK) rc = add_model(sub, &m, path, &index, err);
            if (rc == KN_OK && known_count == KN_MODELS_PER_BATCH_MAX + 1)
                rc = kn_err_set(err, KN_ELIMIT, "model: more than %d names of models in a batch",
                                KN_MODELS_PER_BATCH_MAX);
            if (rc == KN_OK) {
                known[known_count].name = name;
                known[known_count++].index = index;
            }
        }
        have = rc == KN_OK;
        if (have) {
            t->model_index = index;
            trial = *t;
            trial.set |= KN_SET_SEED;
            rc = kn_task_resolve(&trial, &sub->models[index], err);
        }
        if (rc) {
            /* a model that the command line named, or that nobody did, is no line's mistake */
            if (!have && (!name || (o->settings.model && strcmp(name, o->settings.model) == 0))) return rc;
            kn_err_prefix(err, "task %zu", i);
            return name_line(sub, err);
        }
    }
    int rc = kn_tasks_expand(&sub->tasks, o->images, seed, err);
    if (rc) return name_line(sub, err);
    for (size_t i = 0; i < sub->tasks.count; i++) {
        struct kn_task *t = kn_tasks_edit(&sub->tasks, i);
        rc = kn_task_resolve(t, &sub->models[t->model_index], err);
        if (rc) return rc;
    }
    return write_request(sub, o, err);
}

int submission_keys(struct submission *sub, struct kn_err *err) {
    sub->keys = calloc(sub->tasks.count, sizeof *sub->keys);
    if (!sub->keys) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    for (size_t i = 0; i < sub->tasks.count; i++) {
        const struct kn_task *t = kn_tasks_at(&sub->tasks, i);
        kn_task_key(t, sub->models[t->model_index].sha256, sub->keys[i]);
    }
    return KN_OK;
}

void submission_fini(struct submission *sub) {
    kn_tasks_fini(&sub->tasks);
    for (size_t i = 0; i < sub->model_count; i++) free(sub->paths[i]);
    free(sub->keys);
    free(sub->request);
    free(sub->inputs);
    free(sub->first);
    *sub = (struct submission){0};
}

/* The chunks of a submission, one message after another; one over a frame takes several. */
struct chunks {
    struct client *c;
    const struct submission *sub;
    const uint32_t *pick;
    size_t count, from; /* tasks, and those that were packed */
    const uint8_t *id;
    struct kn_task *tasks; /* owns; room for a chunk's */
    struct kn_buf packed;  /* the chunk that is being sent */
    uint32_t part, parts, tasks_in;
};

static int pack_next(struct chunks *k, struct kn_err *err) {
    size_t n = k->count - k->from < KN_TASKS_PER_CHUNK_MAX ? k->count - k->from : KN_TASKS_PER_CHUNK_MAX;
    for (size_t i = 0; i < n; i++)
        k->tasks[i] = *kn_tasks_at(&k->sub->tasks, k->pick ? k->pick[k->from + i] : k->from + i);
    kn_buf_clear(&k->packed);
    int rc = kn_chunk_pack(k->tasks, n, &k->packed, err);
    k->from += n;
    k->tasks_in = (uint32_t)n;
    k->part = 0;
    k->parts = (uint32_t)((k->packed.len + KN_CHUNK_PART_BYTES - 1) / KN_CHUNK_PART_BYTES);
    if (rc == KN_OK && k->parts > 1) rc = client_needs(k->c, KN_FEATURE_PARTS, err);
    return rc;
}

static int next_message(void *ctx, struct kn_msg *m, struct kn_buf *buf, struct kn_err *err) {
    struct chunks *k = ctx;
    int rc = KN_OK;
    if (k->part == k->parts) {
        if (k->from == k->count) return KN_ENOENT;
        rc = pack_next(k, err);
    }
    size_t at = (size_t)k->part * KN_CHUNK_PART_BYTES, left = k->packed.len - at;
    if (rc == KN_OK)
        rc = kn_buf_append(buf, k->packed.data + at, left < KN_CHUNK_PART_BYTES ? left : KN_CHUNK_PART_BYTES);
    if (rc) return rc;
    m->type = KN_MSG_SUBMIT_CHUNK;
    struct kn_submit_chunk *s = &m->u.submit_chunk;
    memcpy(s->batch, k->id, sizeof s->batch);
    s->chunk = (uint32_t)((k->from - 1) / KN_TASKS_PER_CHUNK_MAX);
    s->count = k->tasks_in;
    s->part = k->part++;
    s->parts = k->parts > 1 ? k->parts : 0;
    s->tasks = (const uint8_t *)buf->data;
    s->tasks_len = buf->len;
    return KN_OK;
}

static int send_chunks(struct client *c, const struct submission *sub, const uint32_t *pick, size_t count,
                       const kn_id id, struct kn_err *err) {
    struct chunks k = {.c = c, .sub = sub, .pick = pick, .count = count, .id = id};
    k.tasks = calloc(KN_TASKS_PER_CHUNK_MAX, sizeof *k.tasks);
    if (!k.tasks) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    kn_buf_init(&k.packed, KN_CHUNK_BYTES_MAX);
    int rc = client_calls(c, next_message, &k, KN_CHUNK_PART_BYTES, CLIENT_RESTART_MS, err);
    kn_buf_fini(&k.packed);
    free(k.tasks);
    return rc;
}

int submission_send(struct client *c, const struct submission *sub, const uint32_t *pick, size_t count,
                    const kn_id id, const struct cli_options *o, struct kn_err *err) {
    const char *features[KN_FEATURES_MAX];
    uint64_t needs = 0;
    for (size_t i = 0; i < count; i++) needs |= kn_task_needs(kn_tasks_at(&sub->tasks, pick ? pick[i] : i));
    int rc = client_needs(c, needs, err);
    if (rc) return rc;
    for (int tries = 0; tries < SUBMIT_TRIES; tries++) {
        struct kn_msg m = {.type = KN_MSG_SUBMIT_BEGIN};
        struct kn_submit_begin *b = &m.u.submit_begin;
        memcpy(b->batch, id, sizeof(kn_id));
        b->name = sub->name;
        b->pin_backend = o->pin_backend ? o->pin_backend : "";
        b->request = sub->request;
        b->tasks = (uint32_t)count;
        b->chunks = (uint32_t)((count + KN_TASKS_PER_CHUNK_MAX - 1) / KN_TASKS_PER_CHUNK_MAX);
        b->priority = o->priority;
        b->models = (struct kn_model_info *)sub->models;
        b->model_count = sub->model_count;
        b->features = features;
        b->feature_count = kn_features_list(needs & ~KN_FEATURES_BEFORE, features);
        rc = client_call(c, &m, KN_MSG_REPLY, CLIENT_RESTART_MS, NULL, err);
        if (rc) return rc;
        rc = send_chunks(c, sub, pick, count, id, err);
        if (rc == KN_OK) {
            struct kn_msg seal = {.type = KN_MSG_SUBMIT_SEAL};
            memcpy(seal.u.submit_seal.batch, id, sizeof(kn_id));
            rc = client_call(c, &seal, KN_MSG_REPLY, CLIENT_RESTART_MS, NULL, err);
        }
        /* a coordinator that came back meanwhile may not know all of it: the same again, which doubles
         * nothing */
        if (rc != KN_ENOENT && rc != KN_ESTATE && rc != KN_EIO) break;
        int rc2 = client_sleep(c, 200, err);
        if (rc2) return rc2;
    }
    return rc;
}
