/* The engine behind kiln.h: an engine is a backend's context, a model is a folder's networks, a render is the
 * loop text → noise → (UNet, guidance, sampler) × steps → picture.
 *
 * Why an image does not depend on its batch: texts are encoded one at a time and remembered by their text;
 * each image has its own generator, coefficients and guidance; the sampler is elementwise; and the
 * networks promise the same of themselves (models/models.h). Nothing is allocated inside of the denoising
 * loop. One thread. */
#include "kernels/kiln.h"

#include <assert.h>
#include <gnu/libc-version.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utf8proc.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/hash.h"
#include "kernels/io/config.h"
#include "kernels/io/safetensors.h"
#include "kernels/ops.h"
#include "kernels/samplers/noise.h"
#include "kernels/samplers/schedule.h"
#include "kernels/text/tokenizer.h"

#define TEXT_CACHE_BYTES_MAX (64u << 20)
#define TEXT_CACHE_MAX 256
#define BATCH_MAX 64
#define BATCH_CPU 4 /* or a row for each thread, where that is more: beyond it a CPU gains nothing */

struct kiln_engine {
    struct kx_ctx *ctx;
    char backend[KN_BACKEND_MAX + 1];
    char device[KN_DEVICE_MAX + 1];
};

/* The text encoder's output for a text. */
struct encoded {
    char *text; /* owns */
    int32_t *ids;
    float *states;
    uint64_t used; /* the larger, the later */
};

struct kiln_model {
    struct kiln_engine *engine; /* borrowed */
    struct kx_config cfg;
    struct kx_tokenizer *tokenizer;
    struct kx_text *text;
    struct kx_unet *unet;
    struct kx_vae *vae;
    int positions, width; /* of the text states */
    struct encoded cache[TEXT_CACHE_MAX];
    int cache_count, cache_max;
    uint64_t cache_clock;
};

/* ---- engine ---- */

/* Everything outside of this folder's code that can move a bit, and the code's version. */
static void name_backend(struct kiln_engine *e) {
    char facts[512];
    uint8_t digest[KN_SHA256_BYTES];
    char hex[KN_SHA256_HEX];
    snprintf(facts, sizeof facts, "engine %s\nbackend %s\nlibm %s\nunicode %s\ncompiler %s\n",
             KILN_ENGINE_VERSION, kx_ctx_facts(e->ctx), gnu_get_libc_version(), utf8proc_unicode_version(),
             __VERSION__);
    kn_sha256(facts, strlen(facts), digest);
    kn_hex(digest, sizeof digest, hex);
    snprintf(e->backend, sizeof e->backend, "%s-%.6s", kx_ctx_class(e->ctx), hex);
}

int kiln_engine_create(const struct kiln_engine_options *opt, struct kiln_engine **out, struct kn_err *err) {
    *out = NULL;
    if (opt->device != KILN_DEVICE_CPU)
        return kn_err_set(err, KN_EUNSUPPORTED, "device: this engine was built for the CPU alone");
    struct kiln_engine *e = calloc(1, sizeof *e);
    if (!e) return kn_err_set(err, KN_ENOMEM, "out of memory");
    int rc = kx_ctx_create(opt->threads, &e->ctx, err);
    if (rc) {
        free(e);
        return rc;
    }
    name_backend(e);
    kx_ctx_describe(e->ctx, e->device, sizeof e->device);
    *out = e;
    return 0;
}

void kiln_engine_destroy(struct kiln_engine *e) {
    if (!e) return;
    kx_ctx_destroy(e->ctx);
    free(e);
}

const char *kiln_engine_backend(const struct kiln_engine *e) {
    return e->backend;
}

const char *kiln_engine_device(const struct kiln_engine *e) {
    return e->device;
}

/* ---- model ---- */

typedef int (*create_network)(struct kiln_model *m, const struct kx_weights *w, struct kn_err *err);

static int create_text(struct kiln_model *m, const struct kx_weights *w, struct kn_err *err) {
    return kx_text_create(m->engine->ctx, &m->cfg.text, w, &m->text, err);
}
static int create_unet(struct kiln_model *m, const struct kx_weights *w, struct kn_err *err) {
    return kx_unet_create(m->engine->ctx, &m->cfg.unet, w, &m->unet, err);
}
static int create_vae(struct kiln_model *m, const struct kx_weights *w, struct kn_err *err) {
    return kx_vae_create(m->engine->ctx, &m->cfg.vae, w, &m->vae, err);
}

static int load_network(struct kiln_model *m, const char *dir, const char *part, const char *stem,
                        create_network create, struct kn_err *err) {
    char path[KN_PATH_MAX];
    struct kx_weights *w;
    int rc = kn_fs_join(path, sizeof path, dir, part);
    if (rc) return kn_err_set(err, rc, "%s: path too long", dir);
    if ((rc = kx_weights_open(path, stem, &w, err))) return rc;
    rc = create(m, w, err);
    kx_weights_close(w);
    return rc ? kn_err_prefix(err, "%s", path) : 0;
}

int kiln_model_load(struct kiln_engine *e, const char *dir, struct kiln_model **out, struct kn_err *err) {
    *out = NULL;
    struct kiln_model *m = calloc(1, sizeof *m);
    if (!m) return kn_err_set(err, KN_ENOMEM, "out of memory");
    m->engine = e;
    char path[KN_PATH_MAX];
    int rc = kx_config_read(dir, &m->cfg, err);
    if (!rc && (rc = kn_fs_join(path, sizeof path, dir, "tokenizer")))
        kn_err_set(err, rc, "%s: path too long", dir);
    if (!rc) rc = kx_tokenizer_open(path, m->cfg.text.positions_max, &m->tokenizer, err);
    if (!rc && kx_tokenizer_id_max(m->tokenizer) >= m->cfg.text.vocab_size)
        rc = kn_err_set(err, KN_EPARSE, "%s: token %d is beyond text_encoder's vocab_size %d", path,
                        kx_tokenizer_id_max(m->tokenizer), m->cfg.text.vocab_size);
    if (!rc) rc = load_network(m, dir, "text_encoder", "model", create_text, err);
    if (!rc) rc = load_network(m, dir, "unet", "diffusion_pytorch_model", create_unet, err);
    if (!rc) rc = load_network(m, dir, "vae", "diffusion_pytorch_model", create_vae, err);
    if (rc) {
        kiln_model_destroy(m);
        return rc;
    }
    m->positions = kx_tokenizer_length(m->tokenizer);
    m->width = m->cfg.text.hidden_size;
    size_t bytes = (size_t)m->positions * (size_t)m->width * sizeof(float);
    size_t room = TEXT_CACHE_BYTES_MAX / bytes;
    m->cache_max = room > TEXT_CACHE_MAX ? TEXT_CACHE_MAX : room < 2 ? 2 : (int)room;
    *out = m;
    return 0;
}

static void encoded_fini(struct encoded *c) {
    free(c->text);
    free(c->ids);
    free(c->states);
    *c = (struct encoded){0};
}

void kiln_model_destroy(struct kiln_model *m) {
    if (!m) return;
    for (int i = 0; i < m->cache_count; i++) encoded_fini(&m->cache[i]);
    kx_tokenizer_close(m->tokenizer);
    kx_text_destroy(m->text);
    kx_unet_destroy(m->unet);
    kx_vae_destroy(m->vae);
    free(m);
}

int kiln_model_batch_max(const struct kiln_model *m, uint32_t width, uint32_t height) {
    const struct kx_unet_config *u = &m->cfg.unet;
    const struct kx_vae_config *v = &m->cfg.vae;
    double latents = (double)width * height / ((double)v->factor * v->factor), bytes = 0;
    /* what an image keeps for the way up (its two rows, with and without the prompt), and as much again that
     * is being worked on */
    for (int i = 0; i < u->levels; i++)
        bytes += 2 * 4.0 * (u->layers[i] + 1) * u->channels[i] * latents / (double)(1u << (2 * i));
    bytes = 3 * bytes + 2 * 4.0 * latents * u->channels[0] * 12;
    double have = (double)sysconf(_SC_AVPHYS_PAGES) * (double)sysconf(_SC_PAGESIZE) / 2;
    int most = (kx_ctx_threads(m->engine->ctx) + 1) / 2; /* a picture with guidance has two rows */
    if (most < BATCH_CPU) most = BATCH_CPU;
    if (most > BATCH_MAX) most = BATCH_MAX;
    int n = bytes > 0 && have / bytes < most ? (int)(have / bytes) : most;
    return n < 1 ? 1 : n;
}

/* ---- text ---- */

/* ids and states of a text, remembered: the caller copies them before the next call. */
static int encode(struct kiln_model *m, const char *text, const struct encoded **out, struct kn_err *err) {
    struct encoded *slot = NULL;
    for (int i = 0; i < m->cache_count; i++) {
        struct encoded *c = &m->cache[i];
        if (!strcmp(c->text, text)) {
            c->used = ++m->cache_clock;
            *out = c;
            return 0;
        }
        if (!slot || c->used < slot->used) slot = c;
    }
    struct encoded new = {.text = strdup(text),
                          .ids = malloc((size_t)m->positions * sizeof *new.ids),
                          .states = malloc((size_t)m->positions * (size_t)m->width * sizeof *new.states),
                          .used = ++m->cache_clock};
    int rc = new.text &&new.ids &&new.states ? 0 : kn_err_set(err, KN_ENOMEM, "out of memory");
    if (!rc) rc = kx_tokenizer_encode(m->tokenizer, text, new.ids, err);
    if (!rc) rc = kx_text_encode(m->text, new.ids, 1, m->positions, new.states, err);
    if (rc) {
        encoded_fini(&new);
        return rc;
    }
    if (m->cache_count < m->cache_max)
        slot = &m->cache[m->cache_count++];
    else
        encoded_fini(slot);
    *slot = new;
    *out = slot;
    return 0;
}

/* ---- rendering ---- */

/* One image while it is rendered. */
struct image {
    const struct kn_task *task;
    struct kx_noise noise;
    struct kx_step_state state; /* slices of the arena */
    float *u, *c;               /* its rows of the prediction; u is NULL without guidance */
    float *u_in, *c_in;         /* its rows of the UNet's input */
    int status, failed_step;
};

/* Buffers of one call of kiln_render, for its largest batch; one allocation. NHWC; `values` is an image's
 * number of latents. */
struct render {
    struct kiln_model *m;
    const struct kiln_callbacks *cb;
    const struct kx_schedule *schedule;
    int h, w, channels; /* of the latents */
    size_t values, pixels;
    struct image *images;
    float *arena;
    float *latents, *saved, *history[KX_HISTORY_MAX], *in, *out, *states, *times, *guided, *noise, *scratch,
        *rgb;
    uint8_t *bytes;
};

static void dump(const struct render *r, const char *name, const void *data, const int64_t *shape, int ndim) {
    r->cb->dump(r->cb->ctx, name, data, shape, ndim);
}

/* Channels last to channels first, as the tensors of PyTorch lie. */
static void to_nchw(const struct render *r, const float *x, float *out) {
    size_t area = (size_t)r->h * (size_t)r->w, channels = (size_t)r->channels;
    for (size_t c = 0; c < channels; c++)
        for (size_t i = 0; i < area; i++) out[c * area + i] = x[i * channels + c];
}

static void to_nhwc(const struct render *r, const float *x, float *out) {
    size_t area = (size_t)r->h * (size_t)r->w, channels = (size_t)r->channels;
    for (size_t c = 0; c < channels; c++)
        for (size_t i = 0; i < area; i++) out[i * channels + c] = x[c * area + i];
}

static void dump_latents(const struct render *r, const char *prefix, int step, const float *x) {
    char name[32];
    if (step < 0)
        snprintf(name, sizeof name, "%s", prefix);
    else
        snprintf(name, sizeof name, "%s_%03d", prefix, step);
    to_nchw(r, x, r->scratch);
    dump(r, name, r->scratch, (int64_t[]){1, r->channels, r->h, r->w}, 4);
}

/* The next draw of an image's generator, in PyTorch's order, laid out as ours. */
static void draw(const struct render *r, struct image *im, float *out) {
    kx_noise_normal(&im->noise, r->scratch, r->values);
    to_nhwc(r, r->scratch, out);
}

static bool guided(const struct kn_task *t) {
    return t->cfg > 1.0f; /* as diffusers has it: at 1 and below the negative prompt does nothing */
}

static int render_alloc(struct render *r, int n) {
    struct kiln_model *m = r->m;
    size_t rows = 2 * (size_t)n, v = r->values, states = (size_t)m->positions * (size_t)m->width,
           count = (size_t)n;
    size_t slots = (size_t)r->schedule->slots;
    size_t total =
        count * v * (2 + slots) + rows * v * 2 + rows * states + rows + 3 * v + count * r->pixels * 3;
    r->arena = malloc(total * sizeof(float));
    r->images = calloc(count, sizeof *r->images);
    r->bytes = malloc(r->pixels * 3);
    if (!r->arena || !r->images || !r->bytes) return KN_ENOMEM;
    float *p = r->arena;
#define TAKE(field, size) (field) = p, p += (size)
    TAKE(r->latents, count * v);
    TAKE(r->saved, count * v);
    for (size_t k = 0; k < slots; k++) TAKE(r->history[k], count * v);
    TAKE(r->in, rows * v);
    TAKE(r->out, rows * v);
    TAKE(r->states, rows * states);
    TAKE(r->times, rows);
    TAKE(r->guided, v);
    TAKE(r->noise, v);
    TAKE(r->scratch, v);
    TAKE(r->rgb, count * r->pixels * 3);
#undef TAKE
    assert(p == r->arena + total);
    return 0;
}

static void render_free(struct render *r) {
    free(r->arena);
    free(r->images);
    free(r->bytes);
}

/* Encodes the texts of n images and gives each its rows: first those without the prompt, then those with it.
 * *rows out. */
static int start_text(struct render *r, const struct kn_task *tasks, int n, int *rows, struct kn_err *err) {
    struct kiln_model *m = r->m;
    size_t states = (size_t)m->positions * (size_t)m->width;
    int row = 0, rc = 0;
    for (int side = 0; side < 2; side++)
        for (int i = 0; i < n; i++) {
            struct image *im = &r->images[i];
            if (side == 0 && !guided(&tasks[i])) continue;
            const struct encoded *e;
            if ((rc = encode(m, side ? tasks[i].prompt : tasks[i].negative, &e, err))) return rc;
            memcpy(r->states + (size_t)row * states, e->states, states * sizeof *r->states);
            *(side ? &im->c : &im->u) = r->out + (size_t)row * r->values;
            *(side ? &im->c_in : &im->u_in) = r->in + (size_t)row * r->values;
            row++;
        }
    *rows = row;
    if (r->cb->dump) { /* one image: its negative prompt first */
        const struct encoded *e;
        int32_t *ids = malloc((size_t)row * (size_t)m->positions * sizeof *ids);
        if (!ids) return kn_err_set(err, KN_ENOMEM, "out of memory");
        for (int k = 0; k < row && !rc; k++) {
            rc = encode(m, k + 1 == row ? tasks[0].prompt : tasks[0].negative, &e, err);
            if (!rc) memcpy(ids + k * m->positions, e->ids, (size_t)m->positions * sizeof *ids);
        }
        if (!rc) dump(r, "input_ids", ids, (int64_t[]){row, m->positions}, 2);
        if (!rc) dump(r, "text_states", r->states, (int64_t[]){row, m->positions, m->width}, 3);
        free(ids);
    }
    return rc;
}

static void start_noise(struct render *r, const struct kn_task *tasks, int n) {
    for (int i = 0; i < n; i++) {
        struct image *im = &r->images[i];
        size_t at = (size_t)i * r->values;
        im->state.x = r->latents + at;
        im->state.saved = r->saved + at;
        for (int k = 0; k < r->schedule->slots; k++) im->state.history[k] = r->history[k] + at;
        kx_noise_init(&im->noise, tasks[i].seed);
        draw(r, im, im->state.x);
        if (r->cb->dump) dump_latents(r, "noise", -1, im->state.x);
        kx_scale(im->state.x, r->schedule->init_scale, im->state.x, r->values);
    }
}

static int denoise(struct render *r, int n, int rows, struct kn_err *err) {
    const struct kx_schedule *s = r->schedule;
    for (int k = 0; k < s->count; k++) {
        const struct kx_step *step = &s->v[k];
        for (int i = 0; i < n; i++) {
            struct image *im = &r->images[i];
            kx_scale(im->state.x, step->in_scale, im->c_in, r->values);
            if (im->u_in) memcpy(im->u_in, im->c_in, r->values * sizeof(float));
        }
        for (int i = 0; i < rows; i++) r->times[i] = step->timestep;
        int rc = kx_unet_forward(r->m->unet, r->in, r->times, rows, r->out, err);
        if (rc) return rc;
        for (int i = 0; i < n; i++) {
            struct image *im = &r->images[i];
            bool finite = kx_guide(im->u, im->c, im->task->cfg, r->guided, r->values);
            if (s->noisy) draw(r, im, r->noise);
            kx_step_apply(step, &im->state, r->guided, r->noise, r->values);
            if (!finite && !im->status) {
                im->status = KN_ENAN;
                im->failed_step = k;
            }
            if (r->cb->dump) {
                dump_latents(r, "unet", k, r->guided);
                dump_latents(r, "latents", k, im->state.x);
            }
        }
        if (r->cb->step && r->cb->step(r->cb->ctx, k + 1, s->count))
            return kn_err_set(err, KN_ECANCELED, "cancelled at step %d", k + 1);
    }
    return 0;
}

/* f32 in [0, 1] to bytes, half to even as numpy rounds. False: a value is not finite. */
static bool quantize(const float *rgb, uint8_t *out, size_t n) {
    bool finite = true;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(rgb[i])) {
            finite = false;
            break;
        }
        out[i] = (uint8_t)rintf(fminf(fmaxf(rgb[i], 0), 1) * 255.0f);
    }
    return finite;
}

static bool is_flat(const uint8_t *rgb, size_t pixels) {
    for (size_t i = 1; i < pixels; i++)
        if (memcmp(rgb, rgb + 3 * i, 3)) return false;
    return true;
}

/* Hands the decoded image to the callback. ms: its share of the time. */
static int hand_out(struct render *r, struct image *im, const float *rgb, int index, double ms,
                    struct kn_err *err) {
    struct kiln_image out = {
        .task = im->task, .index = index, .status = im->status, .step = im->failed_step, .render_ms = ms};
    if (!im->status && r->cb->dump) {
        int factor = r->m->cfg.vae.factor;
        dump(r, "image", rgb, (int64_t[]){r->h * factor, r->w * factor, 3}, 3);
    }
    if (!im->status && quantize(rgb, r->bytes, 3 * r->pixels)) {
        out.rgb = r->bytes;
        out.flat = is_flat(r->bytes, r->pixels);
    } else if (!im->status) {
        out.status = KN_ENAN;
        out.step = r->schedule->count;
    }
    if (r->cb->image(r->cb->ctx, &out)) return kn_err_set(err, KN_ECANCELED, "cancelled at image %d", index);
    return 0;
}

/* Decodes n images, as many at a time as there are lanes for, and hands out what is ready. */
static int decode(struct render *r, int first, int n, double shared_ms, struct kn_err *err) {
    int group = kx_vae_lanes(r->m->vae, n, r->h, r->w) > 1 ? n : 1, rc = 0;
    for (int i = 0; i < n && !rc; i += group) {
        uint64_t begun = kn_clock_us();
        if (group > 1 || !r->images[i].status)
            rc = kx_vae_decode(r->m->vae, r->latents + (size_t)i * r->values, group, r->h, r->w, r->rgb, err);
        double ms = shared_ms + (double)(kn_clock_us() - begun) / 1000 / group;
        for (int k = 0; k < group && !rc; k++)
            rc = hand_out(r, &r->images[i + k], r->rgb + (size_t)k * 3 * r->pixels, first + i + k, ms, err);
    }
    return rc;
}

static int render_batch(struct render *r, const struct kn_task *tasks, int first, int n, struct kn_err *err) {
    uint64_t begun = kn_clock_us();
    for (int i = 0; i < n; i++) r->images[i] = (struct image){.task = &tasks[first + i]};
    int rows;
    int rc = start_text(r, tasks + first, n, &rows, err);
    if (!rc) rc = kx_unet_plan(r->m->unet, rows, r->h, r->w, r->m->positions, err);
    if (!rc) rc = kx_unet_set_text(r->m->unet, r->states, rows, r->m->positions, err);
    if (rc) return rc;
    start_noise(r, tasks + first, n);
    rc = denoise(r, n, rows, err);
    return rc ? rc : decode(r, first, n, (double)(kn_clock_us() - begun) / 1000 / n, err);
}

/* What the tasks must share, and what the loop relies on. */
static int check_tasks(const struct kiln_model *m, const struct kn_task *t, int n,
                       const struct kiln_callbacks *cb, struct kn_err *err) {
    if (n < 1) return kn_err_set(err, KN_EINVAL, "no tasks");
    if (cb->dump && n != 1) return kn_err_set(err, KN_EINVAL, "a dump is of one image, not of %d", n);
    for (int i = 0; i < n; i++) {
        if ((t[i].set & KN_SET_ALL & ~(unsigned)KN_SET_MODEL) != (KN_SET_ALL & ~(unsigned)KN_SET_MODEL))
            return kn_err_set(err, KN_EINVAL, "task %d is not resolved", i);
        if (t[i].width != t->width || t[i].height != t->height || t[i].sampler != t->sampler ||
            t[i].schedule != t->schedule || t[i].steps != t->steps)
            return kn_err_set(err, KN_EINVAL,
                              "task %d does not share size, sampler, schedule and steps with the first", i);
        if (!isfinite(t[i].cfg)) return kn_err_set(err, KN_EINVAL, "task %d: cfg: not a number", i);
    }
    uint32_t multiple = (uint32_t)m->cfg.size_multiple;
    if (!t->width || !t->height || t->width % multiple || t->height % multiple || t->width > KN_SIZE_MAX ||
        t->height > KN_SIZE_MAX)
        return kn_err_set(err, KN_EINVAL, "size: %ux%u: not multiples of %u up to %d", t->width, t->height,
                          multiple, KN_SIZE_MAX);
    return 0;
}

int kiln_render(struct kiln_model *m, const struct kn_task *tasks, int n, const struct kiln_callbacks *cb,
                struct kn_err *err) {
    struct kx_schedule schedule;
    int rc = check_tasks(m, tasks, n, cb, err);
    if (rc) return rc;
    rc = kx_schedule_create(&m->cfg.scheduler, tasks->sampler, tasks->schedule, (int)tasks->steps, &schedule,
                            err);
    if (rc) return rc;
    kx_plan_trim(m->engine->ctx);
    struct render r = {.m = m, .cb = cb, .schedule = &schedule};
    r.w = (int)tasks->width / m->cfg.vae.factor;
    r.h = (int)tasks->height / m->cfg.vae.factor;
    r.channels = m->cfg.unet.in_channels;
    r.values = (size_t)r.w * (size_t)r.h * (size_t)r.channels;
    r.pixels = (size_t)tasks->width * tasks->height;
    int batch = kiln_model_batch_max(m, tasks->width, tasks->height);
    if (batch > n) batch = n;
    if (render_alloc(&r, batch)) rc = kn_err_set(err, KN_EOOM, "out of memory for a batch of %d", batch);
    for (int i = 0; i < n && !rc; i += batch)
        rc = render_batch(&r, tasks, i, n - i < batch ? n - i : batch, err);
    render_free(&r);
    kx_schedule_fini(&schedule);
    return rc;
}
