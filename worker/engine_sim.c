/* The simulated engine. See engine.h.
 *
 * A picture is a few coloured bands and a disc, drawn from the digest of its task: small, quick to encode,
 * and two tasks look different to a person too. It takes its time in as many steps as the task asks for, so
 * that progress, aborting and heartbeats are what they are with a real engine. */
#include "worker/engine.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"

#define BATCH 64               /* as many as the real one wants */
#define MODEL_BYTES 1500000000 /* what it says that its model has */

struct sim {
    struct engine engine; /* first: an engine * is a sim * */
    struct engine_sim_options opt;
    bool loaded;
    atomic_uint rendered; /* pictures */
};

bool engine_is_sim(const char *spec) {
    return strcmp(spec, "sim") == 0 || strncmp(spec, "sim:", 4) == 0;
}

static bool number(const char *text, double min, double max, double *out) {
    char *end;
    if (text[0] == ' ') return false;
    *out = strtod(text, &end);
    return end != text && *end == '\0' && isfinite(*out) && *out >= min && *out <= max;
}

int engine_sim_parse(const char *spec, struct engine_sim_options *out, struct kn_err *err) {
    static const char *const names[] = {"ms",    "crash", "hang",   "nan",  "flaky", "seed",  "size",
                                        "batch", "oom",   "staged", "load", "sick",  "after", NULL};
    static const char *const sicknesses[] = {"", "nan", "model", "error", "crash"};
    *out = (struct engine_sim_options){.ms = 50, .size = 64};
    char text[256] = "";
    if (strlen(spec) >= sizeof text) return kn_err_set(err, KN_ELIMIT, "%.40s…: too long", spec);
    if (spec[3] == ':') strcpy(text, spec + 4);
    for (char *item = text, *next; item && *item; item = next) {
        if ((next = strchr(item, ',')) != NULL) *next++ = '\0';
        char *value = strchr(item, '=');
        double v, whole = 0;
        if (!value) return kn_err_set(err, KN_EINVAL, "sim: %s: expected name=value", item);
        *value++ = '\0';
        if (strcmp(item, "sick") == 0) {
            int k = SIM_SICK_CRASH;
            while (k > SIM_SOUND && strcmp(value, sicknesses[k]) != 0) k--;
            if (k == SIM_SOUND)
                return kn_err_set(err, KN_EINVAL, "sim: sick: %s is none of nan, model, error, crash", value);
            out->sick = (enum engine_sim_sickness)k;
            continue;
        }
        double max = strcmp(item, "ms") == 0 || strcmp(item, "load") == 0 ? 3600e3 : 1;
        double *real = strcmp(item, "ms") == 0      ? &out->ms
                       : strcmp(item, "load") == 0  ? &out->load
                       : strcmp(item, "crash") == 0 ? &out->crash
                       : strcmp(item, "hang") == 0  ? &out->hang
                       : strcmp(item, "nan") == 0   ? &out->nan
                       : strcmp(item, "flaky") == 0 ? &out->flaky
                                                    : NULL;
        if (real) {
            if (!number(value, 0, max, &v))
                return kn_err_set(err, KN_EINVAL, "sim: %s: %s is not between 0 and %g", item, value, max);
            *real = v;
            continue;
        }
        bool size = strcmp(item, "size") == 0, batch = strcmp(item, "batch") == 0,
             oom = strcmp(item, "oom") == 0, staged = strcmp(item, "staged") == 0,
             after = strcmp(item, "after") == 0;
        double low = size ? KN_SIZE_MIN : batch ? 1 : 0;
        max = size                     ? KN_SIZE_MAX
              : batch || oom || staged ? KN_SHARD_TASKS_MAX
              : after                  ? KN_TASKS_PER_BATCH_MAX
                                       : 9007199254740992.0;
        if (!size && !batch && !oom && !staged && !after && strcmp(item, "seed") != 0) {
            const char *near = kn_suggest(item, names);
            return kn_err_set(err, KN_EINVAL, "sim: %s: unknown%s%s%s", item, near ? ", did you mean " : "",
                              near ? near : "", near ? "?" : "");
        }
        if (!number(value, low, max, &v) || modf(v, &whole) != 0 || (size && fmod(v, KN_SIZE_MULTIPLE) != 0))
            return kn_err_set(err, KN_EINVAL, "sim: %s: %s is not a whole number between %g and %g%s", item,
                              value, low, max, size ? " and a multiple of 8" : "");
        if (size)
            out->size = (uint32_t)v;
        else if (batch)
            out->batch = (uint32_t)v;
        else if (oom)
            out->oom = (uint32_t)v;
        else if (staged)
            out->staged = (uint32_t)v;
        else if (after)
            out->after = (uint32_t)v;
        else
            out->seed = (uint64_t)v;
    }
    if (out->batch == 0) out->batch = out->ms < 1 ? KN_SHARD_TASKS_MAX : BATCH;
    if (out->crash + out->hang + out->nan > 1)
        return kn_err_set(err, KN_EINVAL, "sim: crash, hang and nan are together more than 1");
    return 0;
}

void engine_sim_model(const struct engine_sim_options *opt, struct kn_model_info *out) {
    static const char what[] = "kiln: the simulated model, version 1";
    *out = (struct kn_model_info){
        .name = "sim",
        .defaults = {.sampler = KN_SAMPLER_EULER,
                     .schedule = KN_SCHEDULE_NORMAL,
                     .steps = 20,
                     .cfg = 7,
                     .width = opt->size,
                     .height = opt->size},
        .size_multiple = KN_SIZE_MULTIPLE,
    };
    kn_sha256(what, strlen(what), out->sha256);
}

/* ---- what becomes of a task */

static double share_of(const uint8_t key[KN_SHA256_BYTES], uint64_t seed) {
    return (double)(kn_hash64(key, KN_SHA256_BYTES, seed) >> 11) / 9007199254740992.0;
}

enum engine_sim_fate engine_sim_fate(const struct engine_sim_options *opt, const uint8_t key[KN_SHA256_BYTES],
                                     uint32_t attempt) {
    double u = share_of(key, opt->seed);
    if (u < opt->crash) return SIM_CRASH;
    if (u < opt->crash + opt->hang) return SIM_HANG;
    if (u < opt->crash + opt->hang + opt->nan) return SIM_NAN;
    uint64_t draw = opt->seed ^ (0x9e3779b97f4a7c15u * (attempt + 1ull));
    return share_of(key, draw) < opt->flaky ? SIM_CRASH : SIM_WELL;
}

void engine_sim_draw(const uint8_t key[KN_SHA256_BYTES], uint32_t width, uint32_t height, uint8_t *rgb) {
    uint32_t bands = 3 + key[0] % 4;
    int64_t w = width, h = height, r = (w < h ? w : h) / 4;
    int64_t cx = r + key[1] * (w - 2 * r) / 256, cy = r + key[2] * (h - 2 * r) / 256;
    for (int64_t y = 0; y < h; y++) {
        const uint8_t *band = key + 3 + (size_t)(y * bands / h) * 3;
        for (int64_t x = 0; x < w; x++, rgb += 3) {
            bool disc = (x - cx) * (x - cx) + (y - cy) * (y - cy) < r * r;
            const uint8_t *c = disc ? key + 24 : band;
            for (int k = 0; k < 3; k++) rgb[k] = (uint8_t)(c[k] ^ (x * 32 / w));
        }
    }
}

/* ---- rendering */

static void sleep_until_us(uint64_t us) {
    struct timespec t = {.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {
    }
}

static void meet(enum engine_sim_fate fate) {
    if (fate == SIM_CRASH) raise(SIGKILL);
    if (fate != SIM_HANG) return;
    for (;;) pause();
}

static enum engine_sim_sickness sickness(struct sim *s) {
    return atomic_load(&s->rendered) >= s->opt.after ? s->opt.sick : SIM_SOUND;
}

/* The failure of a worker that is sick before it begins. */
static int sick_from_the_start(struct sim *s, const struct kn_model_info *model, struct kn_err *err) {
    switch (sickness(s)) {
    case SIM_SICK_MODEL:
        return kn_err_set(err, KN_EMODEL, "loading %s: its files are gone", model->name);
    case SIM_SICK_ERROR:
        return kn_err_set(err, KN_EIO, "sim: this worker is sick");
    default:
        return 0;
    }
}

/* Takes the time that a model takes, once. */
static void load(struct sim *s, const struct kn_model_info *model) {
    if (s->loaded) return;
    atomic_store(&s->engine.now->loading_bytes, MODEL_BYTES);
    atomic_store(&s->engine.now->loading, engine_place(&s->engine, model));
    if (s->opt.load > 0) sleep_until_us(kn_clock_us() + (uint64_t)(s->opt.load * 1000));
    atomic_store(&s->engine.now->loading, 0);
    s->loaded = true;
}

static int render_one(struct sim *s, const struct engine_work *w, int i, uint8_t *rgb,
                      const struct kiln_callbacks *cb) {
    const struct kn_task *t = &w->tasks[i];
    uint8_t key[KN_SHA256_BYTES];
    uint64_t begun = kn_clock_us();
    kn_task_key(t, w->model->sha256, key);
    enum engine_sim_fate fate = w->probe ? SIM_WELL : engine_sim_fate(&s->opt, key, w->attempt);
    for (uint32_t k = 1; k <= t->steps; k++) {
        if (s->opt.ms > 0) sleep_until_us(begun + (uint64_t)(s->opt.ms * 1000 * k / t->steps));
        if (cb->step && cb->step(cb->ctx, (int)k, (int)t->steps)) return KN_ECANCELED;
        if (k * 2 >= t->steps) meet(fate); /* on the way, when it has been seen to run */
    }
    struct kiln_image image = {.task = t, .index = i, .rgb = rgb};
    if (sickness(s) == SIM_SICK_CRASH) meet(SIM_CRASH);
    if (fate == SIM_NAN || sickness(s) == SIM_SICK_NAN) {
        image.status = KN_ENAN;
        image.step = (int)t->steps / 2;
        image.rgb = NULL;
    } else {
        engine_sim_draw(key, t->width, t->height, rgb);
        atomic_fetch_add(&s->rendered, 1);
    }
    image.render_ms = (double)(kn_clock_us() - begun) / 1000;
    return cb->image(cb->ctx, &image) ? KN_ECANCELED : 0;
}

static int sim_render(struct engine *e, const struct engine_work *w, const struct kiln_callbacks *cb,
                      struct kn_err *err) {
    struct sim *s = (struct sim *)e;
    if (s->opt.oom && (uint32_t)w->count > s->opt.oom)
        return kn_err_set(err, KN_EOOM, "sim: %d pictures at once, %u fit", w->count, s->opt.oom);
    uint8_t *rgb = malloc((size_t)w->tasks->width * w->tasks->height * 3);
    if (!rgb) return kn_err_set(err, KN_EOOM, "sim: out of memory");
    int rc = sick_from_the_start(s, w->model, err);
    if (rc) {
        free(rgb);
        return rc;
    }
    load(s, w->model);
    atomic_store(&e->now->minibatch, 1);
    for (int i = 0; i < w->count && rc == 0; i++) rc = render_one(s, w, i, rgb, cb);
    free(rgb);
    return rc ? kn_err_set(err, rc, "%s", kn_err_words(rc)) : 0;
}

/* ---- the same in stages */

struct engine_minibatch {
    struct sim *s;
    const struct engine_work *w; /* borrowed */
    const struct kiln_callbacks *cb;
    int first, count;
    double ms; /* each picture's share */
};

static int sim_begin(struct engine *e, const struct engine_work *w, int first,
                     const struct kiln_callbacks *cb, struct engine_minibatch **out, int *count,
                     struct kn_err *err) {
    struct sim *s = (struct sim *)e;
    int rc = sick_from_the_start(s, w->model, err);
    if (rc) return rc;
    struct engine_minibatch *b = malloc(sizeof *b);
    if (!b) return kn_err_set(err, KN_EOOM, "sim: out of memory");
    load(s, w->model);
    *count = w->count - first < (int)s->opt.staged ? w->count - first : (int)s->opt.staged;
    *b = (struct engine_minibatch){s, w, cb, first, *count, 0};
    *out = b;
    return 0;
}

static enum engine_sim_fate fate_of(const struct engine_minibatch *b, int i, uint8_t key[KN_SHA256_BYTES]) {
    kn_task_key(&b->w->tasks[b->first + i], b->w->model->sha256, key);
    return b->w->probe ? SIM_WELL : engine_sim_fate(&b->s->opt, key, b->w->attempt);
}

/* All of the minibatch's tasks a step at a time. */
static int sim_denoise(struct engine_minibatch *b, struct kn_err *err) {
    const struct sim *s = b->s;
    uint32_t steps = b->w->tasks[b->first].steps;
    uint64_t begun = kn_clock_us();
    uint8_t key[KN_SHA256_BYTES];
    if (s->opt.oom && (uint32_t)b->w->count > s->opt.oom)
        return kn_err_set(err, KN_EOOM, "sim: %d pictures at once, %u fit", b->w->count, s->opt.oom);
    for (uint32_t k = 1; k <= steps; k++) {
        if (s->opt.ms > 0) sleep_until_us(begun + (uint64_t)(s->opt.ms * 1000 * b->count * k / steps));
        if (b->cb->step && b->cb->step(b->cb->ctx, (int)k, (int)steps))
            return kn_err_set(err, KN_ECANCELED, "%s", kn_err_words(KN_ECANCELED));
        if (k * 2 < steps) continue;
        for (int i = 0; i < b->count; i++) meet(fate_of(b, i, key));
    }
    b->ms = (double)(kn_clock_us() - begun) / 1000 / b->count;
    return 0;
}

static int sim_finish(struct engine_minibatch *b, struct kn_err *err) {
    const struct kn_task *t = &b->w->tasks[b->first];
    uint8_t key[KN_SHA256_BYTES], *rgb = malloc((size_t)t->width * t->height * 3);
    if (!rgb) return kn_err_set(err, KN_EOOM, "sim: out of memory");
    int rc = 0;
    for (int i = 0; i < b->count && !rc; i++) {
        struct kiln_image image = {.task = &t[i], .index = i, .rgb = rgb, .render_ms = b->ms};
        if (sickness(b->s) == SIM_SICK_CRASH) meet(SIM_CRASH);
        if (fate_of(b, i, key) == SIM_NAN || sickness(b->s) == SIM_SICK_NAN) {
            image.status = KN_ENAN;
            image.step = (int)t->steps / 2;
            image.rgb = NULL;
        } else {
            engine_sim_draw(key, t->width, t->height, rgb);
            atomic_fetch_add(&b->s->rendered, 1);
        }
        if (b->cb->image(b->cb->ctx, &image)) rc = KN_ECANCELED;
    }
    free(rgb);
    return rc ? kn_err_set(err, rc, "%s", kn_err_words(rc)) : 0;
}

static void sim_drop(struct engine_minibatch *b) {
    free(b);
}

static void sim_close(struct engine *e) {
    free(e);
}

int engine_sim_open(const struct engine_options *opt, struct engine **out, struct kn_err *err) {
    static const struct engine_ops whole = {.render = sim_render, .close = sim_close},
                                   stages = {.render = sim_render,
                                             .close = sim_close,
                                             .begin = sim_begin,
                                             .denoise = sim_denoise,
                                             .finish = sim_finish,
                                             .drop = sim_drop};
    struct sim *s = calloc(1, sizeof *s);
    if (!s) return kn_err_set(err, KN_ENOMEM, "out of memory");
    int rc = engine_sim_parse(opt->spec, &s->opt, err);
    if (rc != 0) {
        free(s);
        return rc;
    }
    s->engine = (struct engine){.ops = s->opt.staged ? &stages : &whole,
                                .backend = "sim-1",
                                .device = "simulated",
                                .version = "kiln " KN_ENGINE_VERSION,
                                .batch_max = s->opt.batch};
    *out = &s->engine;
    return 0;
}
