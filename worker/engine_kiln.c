/* The diffusion engine behind engine.h: loads a model when a task first asks for it, and drops those that
 * were not used for longest when the weights in memory would be more than model_bytes_max.
 *
 * On a GPU it works in stages (engine.h): models are loaded and dropped by the first stage's thread alone;
 * `lock` guards the count of minibatches that a model is used by, and one that is used is not dropped. */
#include "worker/engine.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/log.h"

#define IDLE_TOLD_MS 60000
#define BATCH_WANTED 64 /* it cuts what it is given; more at once only makes a lost shard dearer */

struct loaded {
    struct loaded *next; /* the one used before this one */
    struct kiln_model *model;
    const struct kn_model_info *info; /* borrowed from the engine's models */
    uint64_t bytes;
    int used; /* minibatches on their way */
};

struct kiln {
    struct engine engine; /* first: an engine * is a kiln * */
    struct kiln_engine *e;
    struct loaded *models; /* the latest used first */
    uint64_t bytes, bytes_max;
    pthread_mutex_t lock;
    uint64_t idle_told_ms; /* the first stage's thread */
    pthread_cond_t unused; /* a model's last minibatch ended */
};

struct engine_minibatch {
    struct kiln *k;
    struct loaded *model;
    struct kiln_minibatch *b;
};

/* How many bytes of weights a model's folder holds, which is nearly what it takes in a GPU's memory. */
static uint64_t weight_bytes(const char *dir) {
    static const char *const parts[] = {"text_encoder", "text_encoder_2", "unet", "vae"};
    uint64_t sum = 0;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        char path[KN_PATH_MAX], file[KN_PATH_MAX];
        if (kn_fs_join(path, sizeof path, dir, parts[i])) continue;
        DIR *d = opendir(path);
        for (struct dirent *entry; d && (entry = readdir(d)) != NULL;) {
            size_t len = strlen(entry->d_name);
            struct stat st;
            if (len > 12 && strcmp(entry->d_name + len - 12, ".safetensors") == 0 &&
                kn_fs_join(file, sizeof file, path, entry->d_name) == 0 && stat(file, &st) == 0)
                sum += (uint64_t)st.st_size;
        }
        if (d) closedir(d);
    }
    return sum;
}

static void drop(struct kiln *k, struct loaded **at) {
    struct loaded *l = *at;
    *at = l->next;
    k->bytes -= l->bytes;
    kn_info("model_dropped model=%s bytes=%llu", l->info->name, (unsigned long long)l->bytes);
    kiln_model_destroy(l->model);
    free(l);
}

/* Drops the least recently used until `more` bytes fit; waits for those that are in use. */
static void make_room(struct kiln *k, uint64_t more) {
    while (k->models && k->bytes + more > k->bytes_max) {
        struct loaded **at = &k->models;
        while ((*at)->next) at = &(*at)->next;
        pthread_mutex_lock(&k->lock);
        while ((*at)->used) pthread_cond_wait(&k->unused, &k->lock);
        pthread_mutex_unlock(&k->lock);
        drop(k, at);
    }
}

static int load(struct kiln *k, const struct kn_model_info *info, struct loaded **out, struct kn_err *err) {
    for (struct loaded **at = &k->models; *at; at = &(*at)->next) {
        struct loaded *l = *at;
        if (memcmp(l->info->sha256, info->sha256, KN_SHA256_BYTES) != 0) continue;
        *at = l->next;
        l->next = k->models;
        k->models = l;
        *out = l;
        return 0;
    }
    const char *dir = NULL;
    for (size_t i = 0; i < k->engine.model_count; i++)
        if (&k->engine.models[i].info == info) dir = k->engine.models[i].dir;
    if (!dir) return kn_err_set(err, KN_EMODEL, "%s: this model has no folder", info->name);
    struct loaded *l = calloc(1, sizeof *l);
    if (!l) return kn_err_set(err, KN_EOOM, "out of memory");
    l->info = info;
    bool known =
        k->engine.ops->begin == NULL && info->memory_weights; /* a CPU holds f32, whatever the files hold */
    l->bytes = known ? info->memory_weights : weight_bytes(dir);
    make_room(k, l->bytes);
    uint64_t begun = kn_clock_ms();
    atomic_store(&k->engine.now->loading_bytes, l->bytes);
    atomic_store(&k->engine.now->loading, engine_place(&k->engine, info));
    int rc = kiln_model_load(k->e, dir, &l->model, err);
    if ((rc == KN_EOOM || rc == KN_ENOMEM) &&
        k->models) { /* the estimate was too low: it gets all there is */
        make_room(k, k->bytes_max);
        rc = kiln_model_load(k->e, dir, &l->model, err);
    }
    atomic_store(&k->engine.now->loading, 0);
    if (rc != 0) {
        free(l);
        kn_err_prefix(err, "loading %s", info->name);
        if (rc != KN_EDEVICE && err)
            err->code = KN_EMODEL; /* the worker's, whatever it was: no task had a part in it */
        return rc == KN_EDEVICE ? rc : KN_EMODEL;
    }
    kn_info("model_loaded model=%s bytes=%llu ms=%llu", info->name, (unsigned long long)l->bytes,
            (unsigned long long)(kn_clock_ms() - begun));
    l->next = k->models;
    k->models = l;
    k->bytes += l->bytes;
    *out = l;
    return 0;
}

static int kiln_engine_render(struct engine *e, const struct engine_work *w, const struct kiln_callbacks *cb,
                              struct kn_err *err) {
    struct loaded *l = NULL;
    int rc = load((struct kiln *)e, w->model, &l, err);
    int most = rc ? 0 : kiln_model_minibatch_max(l->model, w->tasks->width, w->tasks->height);
    atomic_store(&e->now->minibatch, (unsigned)(w->count < most ? w->count : most));
    return rc ? rc : kiln_render(l->model, w->tasks, w->count, cb, err);
}

/* How much of its time the GPU had nothing to do, once in a while and at the end. */
static void tell_idle(struct kiln *k, uint64_t span_ms) {
    struct kiln_busy b;
    uint64_t now = kn_clock_ms();
    if (now - k->idle_told_ms < span_ms) return;
    kiln_engine_busy(k->e, &b);
    if (b.span_ms > 0) kn_info("gpu_idle share=%.4f of_s=%.1f", 1 - b.busy_ms / b.span_ms, b.span_ms / 1000);
    k->idle_told_ms = now;
}

static int kiln_begin(struct engine *e, const struct engine_work *w, int first,
                      const struct kiln_callbacks *cb, struct engine_minibatch **out, int *count,
                      struct kn_err *err) {
    struct kiln *k = (struct kiln *)e;
    struct engine_minibatch *b = calloc(1, sizeof *b);
    if (!b) return kn_err_set(err, KN_ENOMEM, "out of memory");
    b->k = k;
    tell_idle(k, IDLE_TOLD_MS);
    int rc = load(k, w->model, &b->model, err);
    if (!rc) {
        const struct kn_task *t = w->tasks + first;
        int most = kiln_model_minibatch_max(b->model->model, t->width, t->height);
        *count = w->count - first < most ? w->count - first : most;
        rc = kiln_minibatch_create(b->model->model, t, *count, cb, &b->b, err);
    }
    if (rc) {
        free(b);
        return rc;
    }
    pthread_mutex_lock(&k->lock);
    b->model->used++;
    pthread_mutex_unlock(&k->lock);
    *out = b;
    return 0;
}

static int kiln_denoise(struct engine_minibatch *b, struct kn_err *err) {
    return kiln_minibatch_denoise(b->b, err);
}

static int kiln_finish(struct engine_minibatch *b, struct kn_err *err) {
    return kiln_minibatch_finish(b->b, err);
}

static void kiln_drop(struct engine_minibatch *b) {
    struct kiln *k = b->k;
    kiln_minibatch_destroy(b->b);
    pthread_mutex_lock(&k->lock);
    if (--b->model->used == 0) pthread_cond_signal(&k->unused);
    pthread_mutex_unlock(&k->lock);
    free(b);
}

static void kiln_close(struct engine *e) {
    struct kiln *k = (struct kiln *)e;
    tell_idle(k, 0);
    while (k->models) drop(k, &k->models);
    kiln_engine_destroy(k->e);
    pthread_cond_destroy(&k->unused);
    pthread_mutex_destroy(&k->lock);
    free(k);
}

int engine_kiln_open(const struct engine_options *opt, struct engine **out, struct kn_err *err) {
    static const struct engine_ops whole = {.render = kiln_engine_render, .close = kiln_close},
                                   stages = {.render = kiln_engine_render,
                                             .close = kiln_close,
                                             .begin = kiln_begin,
                                             .denoise = kiln_denoise,
                                             .finish = kiln_finish,
                                             .drop = kiln_drop};
    struct kiln_engine_options o = {.device =
                                        strcmp(opt->spec, "cuda") == 0 ? KILN_DEVICE_CUDA : KILN_DEVICE_CPU,
                                    .device_index = opt->device_index,
                                    .precision = opt->precision,
                                    .fastest = opt->fastest,
                                    .threads = opt->threads,
                                    .memory_bytes_max = opt->memory_bytes_max};
    struct kiln *k = calloc(1, sizeof *k);
    if (!k) return kn_err_set(err, KN_ENOMEM, "out of memory");
    int rc = kiln_engine_create(&o, &k->e, err);
    if (rc != 0) {
        free(k);
        return rc;
    }
    pthread_mutex_init(&k->lock, NULL);
    pthread_cond_init(&k->unused, NULL);
    uint64_t available, total;
    kiln_engine_memory(k->e, &available, &total);
    k->bytes_max = opt->model_bytes_max ? opt->model_bytes_max : total / 2;
    k->idle_told_ms = kn_clock_ms();
    k->engine = (struct engine){.ops = o.device == KILN_DEVICE_CUDA ? &stages : &whole,
                                .backend = kiln_engine_backend(k->e),
                                .device = kiln_engine_device(k->e),
                                .version = "kiln " KN_ENGINE_VERSION,
                                .batch_max = BATCH_WANTED};
    *out = &k->engine;
    return 0;
}
