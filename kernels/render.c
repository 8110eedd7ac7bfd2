/* A render in its three stages (kiln.h): texts and noise; the denoising loop; the pictures.
 *
 * Why an image does not depend on its minibatch: texts are remembered by their text; each image has its own
 * generator, steps and guidance; the sampler is elementwise; and the networks promise the same of themselves
 * (models/models.h).
 *
 * The loop. All that changes from step to step lies in the context's memory: a table of steps with a row a
 * step and image, the rows of the UNet's timesteps, and the step's number, which the sampler counts. So a
 * step is the same calls with the same pointers each time: on a GPU one recording (a CUDA graph), replayed.
 * The host runs AHEAD steps before the device at most, so that it can report progress and notice a device
 * that hangs, and the device never waits for it. A stage's results go to the next through the host's memory:
 * a few megabytes a minibatch, and no stage touches another's buffers.
 *
 * A session is the buffers and the recording of one shape of minibatch; a model keeps the last few. */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "kernels/engine.h"
#include "kernels/samplers/noise.h"
#include "kernels/samplers/schedule.h"

#define SESSIONS_MAX 4
#define AHEAD 2
#define DECODE_TOGETHER_MAX 16

/* ---- a minibatch */

/* One image while it is rendered. */
struct image {
    struct kx_noise noise;
    const struct kx_schedule *schedule; /* its own, or an earlier image's that is equal */
    int row_u, row_c;                   /* UNet rows without and with the prompt; row_u < 0: no guidance */
    int bad;                            /* the first step that was not finite, or −1 */
};

struct kiln_minibatch {
    struct kiln_model *m;            /* borrowed */
    const struct kiln_callbacks *cb; /* borrowed */
    const struct kn_task *tasks;     /* borrowed */
    int n, rows, texts, times, steps, first;
    int h, w, channels; /* of the latents */
    int slots;          /* history slots in use */
    bool noisy, saves;
    size_t values, pixels;
    double ms; /* spent so far */

    struct image *images;          /* own, like all that follows */
    struct kx_schedule *schedules; /* n; those that equal an earlier one stay empty */
    float *states, *pooled;        /* texts × positions × width; texts × pooled */
    float *time_ids;               /* texts × KX_TIME_IDS, with pooled states */
    float *timesteps;              /* times */
    int32_t *row_text;             /* rows */
    int32_t *time_rows;            /* steps × rows */
    struct kx_step *table;         /* steps × n */
    float *guidance;               /* n */
    int32_t *row_u, *row_c;        /* n */
    float *latents;                /* n × values */
    float *scratch, *noise;        /* values; n × values (one draw of each image) */
};

static void dump(const struct kiln_minibatch *b, const char *name, const void *data, const int64_t *shape,
                 int ndim) {
    b->cb->dump(b->cb->ctx, name, data, shape, ndim);
}

/* Channels last to channels first, as the tensors of PyTorch lie. */
static void to_nchw(const struct kiln_minibatch *b, const float *x, float *out) {
    size_t area = (size_t)b->h * (size_t)b->w, channels = (size_t)b->channels;
    for (size_t c = 0; c < channels; c++)
        for (size_t i = 0; i < area; i++) out[c * area + i] = x[i * channels + c];
}

static void to_nhwc(const struct kiln_minibatch *b, const float *x, float *out) {
    size_t area = (size_t)b->h * (size_t)b->w, channels = (size_t)b->channels;
    for (size_t c = 0; c < channels; c++)
        for (size_t i = 0; i < area; i++) out[i * channels + c] = x[c * area + i];
}

static void dump_latents(const struct kiln_minibatch *b, const char *prefix, int step, const float *x) {
    char name[32];
    if (step < 0)
        snprintf(name, sizeof name, "%s", prefix);
    else
        snprintf(name, sizeof name, "%s_%03d", prefix, step);
    to_nchw(b, x, b->scratch);
    dump(b, name, b->scratch, (int64_t[]){1, b->channels, b->h, b->w}, 4);
}

/* The next draw of an image's generator, in PyTorch's order, laid out as ours. */
static void draw(const struct kiln_minibatch *b, struct image *im, float *out) {
    kx_noise_normal(&im->noise, b->scratch, b->values);
    to_nhwc(b, b->scratch, out);
}

static bool guided(const struct kn_task *t) {
    return t->cfg > 1.0f; /* as diffusers has it: at 1 and below the negative prompt does nothing */
}

/* ---- stage 1: texts, noise, the table of steps */

static bool same_schedule(const struct kn_task *a, const struct kn_task *b) {
    return a->sampler == b->sampler && a->schedule == b->schedule && a->steps == b->steps;
}

static int make_schedules(struct kiln_minibatch *b, struct kn_err *err) {
    for (int i = 0; i < b->n; i++) {
        struct image *im = &b->images[i];
        for (int k = 0; k < i && !im->schedule; k++)
            if (same_schedule(&b->tasks[k], &b->tasks[i])) im->schedule = b->images[k].schedule;
        if (im->schedule) continue;
        const struct kn_task *t = &b->tasks[i];
        struct kx_schedule *s = &b->schedules[i];
        int rc = kx_schedule_create(&b->m->cfg.scheduler, t->sampler, t->schedule, (int)t->steps, s, err);
        if (rc) return rc;
        im->schedule = s;
        if (s->count > b->steps) b->steps = s->count;
        if (s->slots > b->slots) b->slots = s->slots;
        b->noisy |= s->noisy;
        b->saves |= s->saves;
    }
    return 0;
}

/* The index of t in b->timesteps, which holds each different timestep once; t is added where it is new. */
static int time_of(struct kiln_minibatch *b, float t) {
    int k = 0;
    while (k < b->times && b->timesteps[k] != t) k++;
    if (k == b->times) b->timesteps[b->times++] = t;
    return k;
}

/* Which row of the UNet's time_proj table a UNet row uses at a timestep. With added_cond the table has a
 * row for each timestep and text, else one for each timestep. */
static int32_t time_proj_row(const struct kiln_minibatch *b, int time, int row) {
    return b->m->pooled ? time * b->texts + b->row_text[row] : time;
}

/* Fills the table of steps (steps × images) and the rows of time_proj (steps × UNet rows). An image with
 * fewer steps than another stays as it is in the rest: its entry says x' = x. */
static void make_table(struct kiln_minibatch *b) {
    for (int k = 0; k < b->steps; k++)
        for (int i = 0; i < b->n; i++) {
            const struct image *im = &b->images[i];
            bool done = k >= im->schedule->count;
            struct kx_step step = im->schedule->v[done ? im->schedule->count - 1 : k];
            if (done)
                step = (struct kx_step){
                    .timestep = step.timestep, .in_scale = step.in_scale, .cx = 1, .store = -1};
            b->table[k * b->n + i] = step;
            int32_t *rows = b->time_rows + (size_t)k * (size_t)b->rows, at = time_of(b, step.timestep);
            rows[im->row_c] = time_proj_row(b, at, im->row_c);
            if (im->row_u >= 0) rows[im->row_u] = time_proj_row(b, at, im->row_u);
        }
}

/* Dumps the texts of the one image, its negative prompt first. A negative prompt that is zeros has no tokens.
 */
static int dump_texts(const struct kiln_minibatch *b, const struct encoded *const *found,
                      struct kn_err *err) {
    const struct kiln_model *m = b->m;
    size_t rows = (size_t)b->rows, positions = (size_t)m->positions, each = positions * (size_t)m->width,
           wide = (size_t)m->pooled;
    int32_t *ids = malloc(rows * positions * sizeof *ids);
    float *values = malloc(rows * (each + wide) * sizeof *values);
    int rc = 0;
    if (!ids || !values) rc = kn_err_set(err, KN_ENOMEM, "out of memory");
    for (int k = 0; k < m->encoders && !rc; k++) {
        int64_t count = 0;
        for (size_t r = 0; r < rows; r++)
            if (found[r]->ids)
                memcpy(ids + (size_t)count++ * positions, found[r]->ids + (size_t)k * positions,
                       positions * sizeof *ids);
        dump(b, k ? "input_ids_2" : "input_ids", ids, (int64_t[]){count, m->positions}, 2);
    }
    for (size_t r = 0; r < rows && !rc; r++) {
        memcpy(values + r * each, found[r]->states, each * sizeof *values);
        if (wide) memcpy(values + rows * each + r * wide, found[r]->pooled, wide * sizeof *values);
    }
    if (!rc) dump(b, "text_states", values, (int64_t[]){b->rows, m->positions, m->width}, 3);
    if (!rc && wide) dump(b, "text_pooled", values + rows * each, (int64_t[]){b->rows, m->pooled}, 2);
    free(ids);
    free(values);
    return rc;
}

/* Appends a text's encoding to the minibatch's texts, with its time_ids where the UNet takes them. Returns
 * its row. */
static int32_t add_text(struct kiln_minibatch *b, const struct encoded *e) {
    const struct kiln_model *m = b->m;
    size_t each = (size_t)m->positions * (size_t)m->width, wide = (size_t)m->pooled, at = (size_t)b->texts;
    memcpy(b->states + at * each, e->states, each * sizeof *b->states);
    if (wide) {
        /* as diffusers' pipeline fills them in: of the whole picture, nothing cut */
        float w = (float)b->tasks->width, h = (float)b->tasks->height,
              time_ids[KX_TIME_IDS] = {h, w, 0, 0, h, w};
        memcpy(b->pooled + at * wide, e->pooled, wide * sizeof *b->pooled);
        memcpy(b->time_ids + at * KX_TIME_IDS, time_ids, sizeof time_ids);
    }
    return b->texts++;
}

/* The negative prompt to encode; NULL where the model takes zeros for an empty one. */
static const char *negative_of(const struct kiln_model *m, const struct kn_task *t) {
    return m->cfg.index.zeros_for_none && !t->negative[0] ? NULL : t->negative;
}

/* Encodes the texts and gives each image its rows: first those without the prompt, then those with it. */
static int make_texts(struct kiln_minibatch *b, struct kn_err *err) {
    struct kiln_model *m = b->m;
    const char **texts = calloc(2 * (size_t)b->n, sizeof *texts);
    const struct encoded **found = calloc(2 * (size_t)b->n, sizeof *found);
    int rc = texts && found ? 0 : kn_err_set(err, KN_ENOMEM, "out of memory");
    if (!rc) {
        for (int i = 0; i < b->n; i++)
            if (guided(&b->tasks[i])) {
                b->images[i].row_u = b->rows;
                texts[b->rows++] = negative_of(m, &b->tasks[i]);
            } else
                b->images[i].row_u = -1;
        for (int i = 0; i < b->n; i++) {
            b->images[i].row_c = b->rows;
            texts[b->rows++] = b->tasks[i].prompt;
        }
        rc = kx_condition(m, texts, b->rows, found, err);
    }
    for (int r = 0; r < b->rows && !rc; r++) {
        int k = 0;
        while (k < r && found[k] != found[r]) k++;
        b->row_text[r] = k < r ? b->row_text[k] : add_text(b, found[r]);
    }
    if (!rc && b->cb->dump) rc = dump_texts(b, found, err);
    free(texts);
    free(found);
    return rc;
}

static void make_noise(struct kiln_minibatch *b) {
    for (int i = 0; i < b->n; i++) {
        struct image *im = &b->images[i];
        float *x = b->latents + (size_t)i * b->values;
        kx_noise_init(&im->noise, b->tasks[i].seed);
        draw(b, im, x);
        if (b->cb->dump) dump_latents(b, "noise", -1, x);
        kx_scale(x, im->schedule->init_scale, x, b->values);
    }
}

/* Allocates `count` zeroed elements of `size` for the pointer that p points to. False: out of memory. */
static bool room(void *p, size_t count, size_t size) {
    void *v = calloc(count ? count : 1, size);
    memcpy(p, &v, sizeof v);
    return v;
}

static bool make_room(struct kiln_minibatch *b) {
    size_t n = (size_t)b->n, rows = 2 * n, steps = (size_t)b->steps;
    return room(&b->states, rows * (size_t)b->m->positions * (size_t)b->m->width, sizeof(float)) &&
           room(&b->pooled, rows * (size_t)b->m->pooled, sizeof(float)) &&
           room(&b->time_ids, rows * KX_TIME_IDS, sizeof(float)) &&
           room(&b->timesteps, steps * n, sizeof(float)) && room(&b->row_text, rows, sizeof(int32_t)) &&
           room(&b->time_rows, steps * rows, sizeof(int32_t)) &&
           room(&b->table, steps * n, sizeof(struct kx_step)) && room(&b->guidance, n, sizeof(float)) &&
           room(&b->row_u, n, sizeof(int32_t)) && room(&b->row_c, n, sizeof(int32_t)) &&
           room(&b->latents, n * b->values, sizeof(float)) && room(&b->scratch, b->values, sizeof(float)) &&
           room(&b->noise, b->noisy ? n * b->values : 0, sizeof(float));
}

/* Checks that the tasks can be one minibatch: resolved, of one size that the model can do, with finite
 * guidance. */
static int check_tasks(struct kiln_model *m, const struct kn_task *t, int n, const struct kiln_callbacks *cb,
                       struct kn_err *err) {
    if (n < 1) return kn_err_set(err, KN_EINVAL, "no tasks");
    if (m->spoiled)
        return kn_err_set(err, KN_ESTATE, "a LoRA could not be taken off: the model must be loaded anew");
    if (cb->dump && n != 1) return kn_err_set(err, KN_EINVAL, "a dump is of one image, not of %d", n);
    for (int i = 0; i < n; i++) {
        if ((t[i].set & KN_SET_ALL & ~(unsigned)KN_SET_MODEL) != (KN_SET_ALL & ~(unsigned)KN_SET_MODEL))
            return kn_err_set(err, KN_EINVAL, "task %d is not resolved", i);
        if (t[i].width != t->width || t[i].height != t->height)
            return kn_err_set(err, KN_EINVAL, "task %d does not share its size with the first", i);
        if (!isfinite(t[i].cfg)) return kn_err_set(err, KN_EINVAL, "task %d: cfg: not a number", i);
    }
    uint32_t multiple = (uint32_t)m->cfg.size_multiple;
    if (!t->width || !t->height || t->width % multiple || t->height % multiple || t->width > KN_SIZE_MAX ||
        t->height > KN_SIZE_MAX)
        return kn_err_set(err, KN_EINVAL, "size: %ux%u: not multiples of %u up to %d", t->width, t->height,
                          multiple, KN_SIZE_MAX);
    return m->engine->gpu ? 0 : kx_image_check(m, t->width, t->height, err);
}

/* How many of n are decoded in one go: on a CPU what there are lanes for; on a GPU as many as fill it, in an
 * eighth of its memory: pictures come out sooner, and the loop, which gains from large minibatches, keeps the
 * rest. */
static int decode_group(const struct kiln_minibatch *b, int n) {
    struct kiln_model *m = b->m;
    size_t each, available, total;
    if (!m->engine->gpu) return kx_vae_lanes(m->vae, n, b->h, b->w) > 1 ? n : 1;
    kx_memory(m->vae_ctx, &available, &total);
    if (!kx_vae_bytes(m->vae, 1, b->h, b->w, &each, NULL) && each > 0) {
        size_t most = total / 8 / each;
        if (most > DECODE_TOGETHER_MAX) most = DECODE_TOGETHER_MAX;
        if (most < (size_t)n) n = most ? (int)most : 1;
    }
    return m->decode_together && m->decode_together < n ? m->decode_together : n;
}

/* The third stage's plan, made in the first: what a library needs for a shape that it has not seen may take
 * seconds, and a farm that heard of steps would take that for hanging. */
static void plan_pictures(struct kiln_minibatch *b) {
    struct kiln_model *m = b->m;
    if (!m->engine->gpu || (m->planned_h == b->h && m->planned_w == b->w && m->planned_n >= b->n)) return;
    struct kn_err ignored; /* it comes again in its stage */
    kx_stage_enter(m->engine, KX_STAGE_PICTURE);
    if (!kx_vae_plan(m->vae, decode_group(b, b->n), b->h, b->w, &ignored)) {
        m->planned_h = b->h;
        m->planned_w = b->w;
        m->planned_n = b->n;
    }
    kx_stage_leave(m->engine, KX_STAGE_PICTURE);
}

int kiln_minibatch_create(struct kiln_model *m, const struct kn_task *tasks, int n,
                          const struct kiln_callbacks *cb, struct kiln_minibatch **out, struct kn_err *err) {
    *out = NULL;
    int rc = check_tasks(m, tasks, n, cb, err);
    if (rc) return rc;
    struct kiln_minibatch *b = calloc(1, sizeof *b);
    if (!b) return kn_err_set(err, KN_ENOMEM, "out of memory");
    *b = (struct kiln_minibatch){.m = m, .cb = cb, .tasks = tasks, .n = n};
    b->w = (int)tasks->width / m->cfg.vae.factor;
    b->h = (int)tasks->height / m->cfg.vae.factor;
    b->channels = m->cfg.unet.in_channels;
    b->values = (size_t)b->w * (size_t)b->h * (size_t)b->channels;
    b->pixels = (size_t)tasks->width * tasks->height;
    kx_stage_enter(m->engine, KX_STAGE_TEXT);
    kx_plan_trim(m->engine->text);
    uint64_t begun = kn_clock_us();
    b->images = calloc((size_t)n, sizeof *b->images);
    b->schedules = calloc((size_t)n, sizeof *b->schedules);
    if (!b->images || !b->schedules) rc = kn_err_set(err, KN_ENOMEM, "out of memory");
    if (!rc) rc = make_schedules(b, err);
    if (!rc && !make_room(b)) rc = kn_err_set(err, KN_ENOMEM, "out of memory for a batch of %d", n);
    if (!rc) rc = make_texts(b, err);
    if (!rc) {
        make_table(b);
        make_noise(b);
        for (int i = 0; i < n; i++) {
            b->guidance[i] = tasks[i].cfg;
            b->row_u[i] = b->images[i].row_u;
            b->row_c[i] = b->images[i].row_c;
        }
        b->ms = (double)(kn_clock_us() - begun) / 1000;
    }
    kx_stage_leave(m->engine, KX_STAGE_TEXT);
    if (rc) {
        kiln_minibatch_destroy(b);
        return rc;
    }
    plan_pictures(b);
    *out = b;
    return 0;
}

void kiln_minibatch_destroy(struct kiln_minibatch *b) {
    if (!b) return;
    for (int i = 0; b->schedules && i < b->n; i++) kx_schedule_fini(&b->schedules[i]);
    void *all[] = {b->images,    b->schedules, b->states,   b->timesteps, b->row_text,
                   b->time_rows, b->table,     b->guidance, b->row_u,     b->row_c,
                   b->latents,   b->scratch,   b->noise,    b->pooled,    b->time_ids};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    free(b);
}

/* ---- stage 2: the loop */

struct session {
    struct session *next; /* the one used before this one */
    struct kiln_model *m; /* borrowed */
    int n, rows, steps, h, w, slots;
    bool noisy, saves, dumps;
    struct kx_sampling s; /* its pointers: one stretch of the context's memory, `memory` */
    int32_t *row_text;
    void *memory;
    struct kx_recording *recording;
    struct kx_event *begins[AHEAD], *ends[AHEAD]; /* of the last steps */
    unsigned generation;                          /* kx_unet_generation when it was recorded */
};

static void session_destroy(struct session *s) {
    struct kx_ctx *ctx = s->m->engine->unet;
    kx_recording_destroy(ctx, s->recording);
    for (int i = 0; i < AHEAD; i++) {
        kx_event_destroy(ctx, s->begins[i]);
        kx_event_destroy(ctx, s->ends[i]);
    }
    kx_free(ctx, s->memory);
    free(s);
}

void kx_sessions_drop(struct kiln_model *m) {
    while (m->sessions) {
        struct session *s = m->sessions;
        m->sessions = s->next;
        session_destroy(s);
    }
}

/* The next stretch of `bytes`, or NULL while it is only counted. */
static void *stretch(void *memory, size_t *at, size_t bytes) {
    void *p = memory ? (char *)memory + *at : NULL;
    *at += (bytes + 255) & ~(size_t)255;
    return p;
}

/* Lays the session's buffers out in `memory` (NULL: counts). Returns the bytes. */
static size_t lay_out(struct session *s, size_t values, size_t value_bytes, void *memory) {
    size_t at = 0, n = (size_t)s->n, rows = (size_t)s->rows, steps = (size_t)s->steps;
    struct kx_sampling *p = &s->s;
    p->table = stretch(memory, &at, steps * n * sizeof *p->table);
    p->guidance = stretch(memory, &at, n * sizeof *p->guidance);
    p->row_u = stretch(memory, &at, n * sizeof *p->row_u);
    p->row_c = stretch(memory, &at, n * sizeof *p->row_c);
    p->time_rows = stretch(memory, &at, steps * rows * sizeof *p->time_rows);
    p->time_row = stretch(memory, &at, rows * sizeof *p->time_row);
    s->row_text = stretch(memory, &at, rows * sizeof *s->row_text);
    p->at = stretch(memory, &at, sizeof *p->at);
    p->bad = stretch(memory, &at, n * sizeof *p->bad);
    p->x = stretch(memory, &at, n * values * sizeof(float));
    p->saved = s->saves ? stretch(memory, &at, n * values * sizeof(float)) : NULL;
    for (int k = 0; k < KX_HISTORY_MAX; k++)
        p->history[k] = k < s->slots ? stretch(memory, &at, n * values * sizeof(float)) : NULL;
    p->noise = s->noisy ? stretch(memory, &at, n * values * sizeof(float)) : NULL;
    p->guided = s->dumps ? stretch(memory, &at, n * values * sizeof(float)) : NULL;
    p->pred = stretch(memory, &at, rows * values * value_bytes);
    p->in = stretch(memory, &at, rows * values * value_bytes);
    return at;
}

static bool fits(const struct session *s, const struct kiln_minibatch *b) {
    return s->n == b->n && s->rows == b->rows && s->steps == b->steps && s->h == b->h && s->w == b->w &&
           s->slots == b->slots && s->noisy == b->noisy && s->saves == b->saves && s->dumps == !!b->cb->dump;
}

/* The session of this shape, in front of the model's; the oldest makes room. */
static int session_get(struct kiln_minibatch *b, struct session **out, struct kn_err *err) {
    struct kiln_model *m = b->m;
    struct kx_ctx *ctx = m->engine->unet;
    int count = 0;
    for (struct session **at = &m->sessions; *at; at = &(*at)->next, count++) {
        struct session *s = *at;
        if (!fits(s, b)) continue;
        *at = s->next;
        s->next = m->sessions;
        *out = m->sessions = s;
        return 0;
    }
    if (count >= SESSIONS_MAX) {
        struct session **last = &m->sessions;
        while ((*last)->next) last = &(*last)->next;
        session_destroy(*last);
        *last = NULL;
    }
    struct session *s = calloc(1, sizeof *s);
    if (!s) return kn_err_set(err, KN_ENOMEM, "out of memory");
    *s = (struct session){.m = m,
                          .n = b->n,
                          .rows = b->rows,
                          .steps = b->steps,
                          .h = b->h,
                          .w = b->w,
                          .slots = b->slots,
                          .noisy = b->noisy,
                          .saves = b->saves,
                          .dumps = b->cb->dump};
    s->s = (struct kx_sampling){.n = b->n, .rows = b->rows, .values = b->values, .steps = b->steps};
    size_t bytes = lay_out(s, b->values, kx_value_bytes(ctx), NULL);
    s->memory = kx_alloc(ctx, bytes);
    int rc = s->memory ? 0 : kn_err_set(err, KN_EOOM, "out of memory for %zu MiB of latents", bytes >> 20);
    if (!rc) lay_out(s, b->values, kx_value_bytes(ctx), s->memory);
    for (int i = 0; i < AHEAD && !rc; i++) {
        rc = kx_event_create(ctx, &s->begins[i], err);
        if (!rc) rc = kx_event_create(ctx, &s->ends[i], err);
    }
    if (rc) {
        session_destroy(s);
        return rc;
    }
    s->next = m->sessions;
    *out = m->sessions = s;
    return 0;
}

/* The UNet's plan, what its images share, and the session's buffers. */
static int prepare(struct kiln_minibatch *b, struct session *s, struct kn_err *err) {
    struct kiln_model *m = b->m;
    struct kx_ctx *ctx = m->engine->unet;
    size_t n = (size_t)b->n, rows = (size_t)b->rows, steps = (size_t)b->steps;
    kx_busy_from(m->engine, KX_STAGE_LOOP, ctx);
    int rc = kx_unet_plan(m->unet, b->rows, b->h, b->w, m->positions, err);
    if (!rc && m->pooled) rc = kx_unet_set_added_cond(m->unet, b->pooled, b->time_ids, b->texts, err);
    if (!rc) rc = kx_unet_set_times(m->unet, b->timesteps, b->times, err);
    if (!rc) rc = kx_unet_set_text(m->unet, b->states, b->texts, m->positions, err);
    if (rc) return rc;
    if (s->generation != kx_unet_generation(m->unet)) {
        kx_recording_destroy(ctx, s->recording);
        s->recording = NULL;
        s->generation = kx_unet_generation(m->unet);
    }
    kx_upload(ctx, (void *)s->s.table, b->table, steps * n * sizeof *b->table);
    kx_upload(ctx, (void *)s->s.guidance, b->guidance, n * sizeof *b->guidance);
    kx_upload(ctx, (void *)s->s.row_u, b->row_u, n * sizeof *b->row_u);
    kx_upload(ctx, (void *)s->s.row_c, b->row_c, n * sizeof *b->row_c);
    kx_upload(ctx, (void *)s->s.time_rows, b->time_rows, steps * rows * sizeof *b->time_rows);
    kx_upload(ctx, s->row_text, b->row_text, rows * sizeof *b->row_text);
    kx_upload(ctx, s->s.x, b->latents, n * b->values * sizeof(float));
    kx_sample_begin(ctx, &s->s);
    kx_busy_to(m->engine, KX_STAGE_LOOP, ctx);
    return kx_ctx_error(ctx, err);
}

/* The argument of run_step, which is what kx_replay records. */
struct one_step {
    struct session *s;
    int rc;
    struct kn_err *err;
};

static void run_step(void *arg) {
    struct one_step *o = arg;
    struct session *s = o->s;
    struct kx_ctx *ctx = s->m->engine->unet;
    /* rows, h, w, channels → rows, h, w, channels; kx_sample turns two rows an image into n, h, w, channels */
    o->rc = kx_unet_forward(s->m->unet, s->s.in, s->s.time_row, s->row_text, s->rows, s->s.pred, o->err);
    if (!o->rc) kx_sample(ctx, &s->s);
}

/* The noise that step k adds, for the images whose sampler draws at each step. */
static void draw_noise(struct kiln_minibatch *b, struct session *s, int k) {
    for (int i = 0; i < b->n; i++) {
        struct image *im = &b->images[i];
        if (im->schedule->noisy && k < im->schedule->count) draw(b, im, b->noise + (size_t)i * b->values);
    }
    kx_upload(b->m->engine->unet, (void *)s->s.noise, b->noise, (size_t)b->n * b->values * sizeof(float));
}

static int report(const struct kiln_minibatch *b, int done, struct kn_err *err) {
    if (b->cb->step && b->cb->step(b->cb->ctx, done, b->steps))
        return kn_err_set(err, KN_ECANCELED, "cancelled at step %d", done);
    return 0;
}

static void dump_step(struct kiln_minibatch *b, const struct session *s, int k) {
    struct kx_ctx *ctx = b->m->engine->unet;
    kx_download(ctx, b->latents, s->s.guided, b->values * sizeof(float));
    dump_latents(b, "unet", k, b->latents);
    kx_download(ctx, b->latents, s->s.x, b->values * sizeof(float));
    dump_latents(b, "latents", k, b->latents);
}

static int loop(struct kiln_minibatch *b, struct session *s, struct kn_err *err) {
    struct kx_ctx *ctx = b->m->engine->unet;
    int rc = 0, timeout_ms = b->m->engine->options.watchdog_ms, behind = b->m->engine->gpu ? AHEAD : 1;
    for (int k = 0; k < b->steps + behind - 1 && !rc; k++) {
        if (k < b->steps) {
            struct one_step step = {s, 0, err};
            if (b->noisy) draw_noise(b, s, k);
            kx_event_set(ctx, s->begins[k % AHEAD]);
            kx_replay(ctx, &s->recording, run_step, &step);
            kx_event_set(ctx, s->ends[k % AHEAD]);
            rc = step.rc ? step.rc : kx_ctx_error(ctx, err);
            if (!rc && b->cb->dump) dump_step(b, s, k);
        }
        int done = k + 1 - behind; /* the step that must be over now */
        if (rc || done < 0) continue;
        rc = kx_event_wait(ctx, s->ends[done % AHEAD], timeout_ms, err);
        if (rc == KN_ETIMEOUT)
            rc = kn_err_set(err, KN_EDEVICE, "step %d of %d took more than %d ms: the device hangs", done + 1,
                            b->steps, timeout_ms);
        if (!rc) kx_busy_between(b->m->engine, ctx, s->begins[done % AHEAD], s->ends[done % AHEAD]);
        if (!rc) rc = report(b, done + 1, err);
    }
    return rc;
}

int kiln_minibatch_denoise(struct kiln_minibatch *b, struct kn_err *err) {
    struct kx_ctx *ctx = b->m->engine->unet;
    struct session *s = NULL;
    int32_t *bad = malloc((size_t)b->n * sizeof *bad);
    if (!bad) return kn_err_set(err, KN_ENOMEM, "out of memory");
    kx_stage_enter(b->m->engine, KX_STAGE_LOOP);
    uint64_t begun = kn_clock_us();
    kx_plan_trim(ctx);
    int rc = session_get(b, &s, err);
    if (!rc) rc = prepare(b, s, err);
    if (!rc) rc = loop(b, s, err);
    if (!rc) {
        kx_download(ctx, b->latents, s->s.x, (size_t)b->n * b->values * sizeof(float));
        kx_download(ctx, bad, s->s.bad, (size_t)b->n * sizeof *bad);
        rc = kx_ctx_error(ctx, err);
        kx_busy_note(b->m->engine, KX_STAGE_LOOP, ctx);
    } else { /* work that is still queued reads the minibatch's memory */
        int code = kx_sync(ctx, NULL);
        if (code == KN_EDEVICE) rc = code;
        if (rc == KN_EOOM) kx_sessions_drop(b->m);
    }
    for (int i = 0; i < b->n && !rc; i++) b->images[i].bad = bad[i];
    b->ms += (double)(kn_clock_us() - begun) / 1000;
    kx_stage_leave(b->m->engine, KX_STAGE_LOOP);
    free(bad);
    if (rc == KN_EOOM && b->n > 1) kx_minibatch_limit(b->m, b->tasks->width, b->tasks->height, b->n);
    return rc;
}

/* ---- stage 3: the pictures */

static bool is_flat(const uint8_t *rgb, size_t pixels) {
    for (size_t i = 1; i < pixels; i++)
        if (memcmp(rgb, rgb + 3 * i, 3)) return false;
    return true;
}

/* Hands a decoded image to the callback. finite: its pixels are numbers. */
static int hand_out(struct kiln_minibatch *b, int i, const uint8_t *bytes, bool finite, double ms,
                    struct kn_err *err) {
    const struct image *im = &b->images[i];
    struct kiln_image out = {.task = &b->tasks[i], .index = b->first + i, .render_ms = ms};
    if (im->bad >= 0) {
        out.status = KN_ENAN;
        out.step = im->bad;
    } else if (!finite) {
        out.status = KN_ENAN;
        out.step = b->steps;
    } else {
        out.rgb = bytes;
        out.flat = is_flat(bytes, b->pixels);
    }
    if (b->cb->image(b->cb->ctx, &out))
        return kn_err_set(err, KN_ECANCELED, "cancelled at image %d", out.index);
    return 0;
}

/* The autoencoder's input and outputs for `n` images, in its context's memory. */
struct decoder {
    float *latents, *rgb; /* rgb: for a dump */
    uint8_t *bytes;
    int32_t *finite;
    uint8_t *host_bytes; /* the last two again, on the host */
    int32_t *host_finite;
    int n;
};

static void decoder_fini(struct kx_ctx *ctx, struct decoder *d) {
    kx_free(ctx, d->latents);
    kx_free(ctx, d->rgb);
    kx_free(ctx, d->bytes);
    kx_free(ctx, d->finite);
    free(d->host_bytes);
    free(d->host_finite);
    *d = (struct decoder){0};
}

static int decoder_init(struct kiln_minibatch *b, int n, struct decoder *d, struct kn_err *err) {
    struct kx_ctx *ctx = b->m->vae_ctx;
    size_t count = (size_t)n;
    *d = (struct decoder){.n = n};
    d->latents = kx_alloc(ctx, count * b->values * sizeof(float));
    d->bytes = kx_alloc(ctx, count * 3 * b->pixels);
    d->finite = kx_alloc(ctx, count * sizeof *d->finite);
    d->host_bytes = malloc(count * 3 * b->pixels);
    d->host_finite = calloc(count, sizeof *d->host_finite);
    if (b->cb->dump) d->rgb = kx_alloc(ctx, count * 3 * b->pixels * sizeof(float));
    if (d->latents && d->bytes && d->finite && d->host_bytes && d->host_finite && (d->rgb || !b->cb->dump))
        return 0;
    decoder_fini(ctx, d);
    return kn_err_set(err, KN_EOOM, "out of memory for %d pictures", n);
}

static int dump_picture(struct kiln_minibatch *b, const struct decoder *d, struct kn_err *err) {
    float *rgb = malloc(3 * b->pixels * sizeof *rgb);
    if (!rgb) return kn_err_set(err, KN_ENOMEM, "out of memory");
    kx_download(b->m->vae_ctx, rgb, d->rgb, 3 * b->pixels * sizeof *rgb);
    dump(b, "image", rgb, (int64_t[]){b->tasks->height, b->tasks->width, 3}, 3);
    free(rgb);
    return 0;
}

/* Decodes images from `at` on, count of them, and hands them out. */
static int decode_some(struct kiln_minibatch *b, struct decoder *d, int at, int count, struct kn_err *err) {
    struct kx_ctx *ctx = b->m->vae_ctx;
    uint64_t begun = kn_clock_us();
    bool wanted = false;
    for (int i = 0; i < count; i++) wanted |= b->images[at + i].bad < 0;
    size_t n = (size_t)count;
    int rc = 0;
    if (wanted) {
        kx_upload(ctx, d->latents, b->latents + (size_t)at * b->values, n * b->values * sizeof(float));
        kx_busy_from(b->m->engine, KX_STAGE_PICTURE, ctx);
        rc = kx_vae_decode(b->m->vae, d->latents, count, b->h, b->w, d->rgb, d->bytes, d->finite, err);
        kx_busy_to(b->m->engine, KX_STAGE_PICTURE, ctx);
        if (rc) return rc;
        kx_download(ctx, d->host_bytes, d->bytes, n * 3 * b->pixels);
        kx_download(ctx, d->host_finite, d->finite, n * sizeof *d->finite);
        if ((rc = kx_ctx_error(ctx, err))) return rc;
        kx_busy_note(b->m->engine, KX_STAGE_PICTURE, ctx);
        if (b->cb->dump && (rc = dump_picture(b, d, err))) return rc;
    }
    double ms = b->ms / b->n + (double)(kn_clock_us() - begun) / 1000 / count;
    for (int i = 0; i < count && !rc; i++)
        rc = hand_out(b, at + i, d->host_bytes + (size_t)i * 3 * b->pixels, d->host_finite[i], ms, err);
    return rc;
}

int kiln_minibatch_finish(struct kiln_minibatch *b, struct kn_err *err) {
    struct kx_ctx *ctx = b->m->vae_ctx;
    kx_stage_enter(b->m->engine, KX_STAGE_PICTURE);
    kx_plan_trim(ctx);
    int rc = 0, at = 0, group = decode_group(b, b->n);
    struct decoder d = {0};
    while (at < b->n && !rc) {
        int count = b->n - at < group ? b->n - at : group;
        if (d.n != group) {
            decoder_fini(ctx, &d);
            rc = decoder_init(b, group, &d, err);
        }
        if (!rc) rc = decode_some(b, &d, at, count, err);
        if (!rc) {
            at += count;
        } else if (rc == KN_EOOM && group > 1) { /* nothing of this group was handed out */
            group = b->m->decode_together = (group + 1) / 2;
            rc = 0;
        }
    }
    decoder_fini(ctx, &d);
    kx_stage_leave(b->m->engine, KX_STAGE_PICTURE);
    return rc;
}

/* ---- all three */

/* *loop_over is set when the loop has ended: from then on images may have been handed to the callback, so
 * that the minibatch cannot be tried again with fewer. */
static int render_minibatch(struct kiln_model *m, const struct kn_task *tasks, int first, int n,
                            const struct kiln_callbacks *cb, bool *loop_over, struct kn_err *err) {
    struct kiln_minibatch *b;
    int rc = kiln_minibatch_create(m, tasks + first, n, cb, &b, err);
    if (rc) return rc;
    b->first = first;
    rc = kiln_minibatch_denoise(b, err);
    *loop_over = !rc;
    if (!rc) rc = kiln_minibatch_finish(b, err);
    kiln_minibatch_destroy(b);
    return rc;
}

int kiln_render(struct kiln_model *m, const struct kn_task *tasks, int n, const struct kiln_callbacks *cb,
                struct kn_err *err) {
    int rc = check_tasks(m, tasks, n, cb, err);
    if (rc) return rc;
    for (int i = 0, count; i < n && !rc; i += count) {
        int most = kiln_model_minibatch_max(m, tasks->width, tasks->height);
        count = n - i < most ? n - i : most;
        bool loop_over = false;
        rc = render_minibatch(m, tasks, i, count, cb, &loop_over, err);
        if (rc == KN_EOOM && count > 1 && !loop_over) { /* the limit was halved: try again with fewer */
            count = rc = 0;
        }
    }
    return rc;
}
