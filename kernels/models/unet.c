/* UNet2DConditionModel (diffusers): conv_in, levels downwards, the middle, levels upwards with the outputs of
 * the way down beside, conv_out.
 *
 * What does not depend on the image is computed before the images part: the time embedding and each residual
 * block's shift once for each different timestep; the text's keys and values once for all steps, and once for
 * texts that are equal. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/models/blocks.h"
#include "kernels/models/lanes.h"

#define LAYERS_MAX 17 /* layers_per_block ≤ 16, one more on the way up (kernels/io/config.c) */
#define SKIPS_MAX (KX_LEVELS_MAX * LAYERS_MAX + 1)
#define TIME_WIDTH 4 /* the time embedding's width over that of the first level */

/* One level of one way: `count` residual blocks, each with a transformer behind it or none of them. */
struct level {
    int count, channels;
    struct kx_resnet *resnets;
    struct kx_transformer *transformers; /* NULL for none */
    struct kx_conv *resample;            /* down or up; NULL at the last */
};

struct kx_unet {
    struct kx_ctx *ctx; /* borrowed */
    struct kx_unet_config cfg;
    struct kx_conv *conv_in, *conv_out;
    struct kx_linear *time1, *time2;
    struct level down[KX_LEVELS_MAX], mid, up[KX_LEVELS_MAX]; /* up[0] is the deepest */
    struct kx_norm norm_out;
    size_t shifts, kv; /* floats of all shifts of a timestep; of all keys and values of a position */

    /* the plan */
    struct kx_lanes one, many, alone; /* images one after another; on lanes; time embeddings */
    struct kx_lanes *lanes;           /* that of the last kx_unet_plan; NULL: none */
    int h, w, positions, n;           /* n: images that there is room for */
    float *shift_room, *kv_room;      /* own: n × shifts, n × positions × kv */
    const float **shift_of, **kv_of;  /* own: an image's, in the rooms */
    int *source;                      /* own: the image whose text is the k-th different one */
    int texts;                        /* of the last kx_unet_set_text */
};

/* ---- creation */

/* Names are prefix + "resnets.K." and prefix + "attentions.K.". `ins`: input channels of each residual block;
 * i: the level in the config's order. */
static void load_level(struct kx_loader *l, struct kx_unet *u, struct level *y, const char *prefix, int i,
                       const int *ins, int count, int transformers) {
    const struct kx_unet_config *cfg = &u->cfg;
    char name[KX_TENSOR_NAME_MAX / 2];
    y->channels = cfg->channels[i];
    y->resnets = kx_loader_alloc(l, (size_t)count, sizeof *y->resnets);
    if (transformers) y->transformers = kx_loader_alloc(l, (size_t)count, sizeof *y->transformers);
    if (l->rc) return;
    y->count = count;
    for (int k = 0; k < count; k++) {
        struct kx_resnet *r = &y->resnets[k];
        snprintf(name, sizeof name, "%sresnets.%d.", prefix, k);
        kx_resnet_load(l, r, name, ins[k], y->channels, cfg->norm_groups, cfg->norm_eps,
                       TIME_WIDTH * cfg->channels[0]);
        r->shift = u->shifts;
        u->shifts += (size_t)y->channels;
        if (k >= transformers) continue;
        snprintf(name, sizeof name, "%sattentions.%d.", prefix, k);
        kx_transformer_load(l, &y->transformers[k], name, y->channels, cfg->heads[i], cfg->norm_groups,
                            cfg->transformer_depth[i], cfg->cross_attention_dim, &u->kv);
    }
}

static void load_down(struct kx_loader *l, struct kx_unet *u) {
    const struct kx_unet_config *cfg = &u->cfg;
    for (int i = 0; i < cfg->levels; i++) {
        char prefix[64];
        int ins[LAYERS_MAX];
        for (int k = 0; k < cfg->layers[i]; k++) ins[k] = cfg->channels[k || !i ? i : i - 1];
        snprintf(prefix, sizeof prefix, "down_blocks.%d.", i);
        load_level(l, u, &u->down[i], prefix, i, ins, cfg->layers[i],
                   cfg->down[i] == KX_BLOCK_CROSS_ATTN ? cfg->layers[i] : 0);
        if (i + 1 == cfg->levels) continue;
        snprintf(prefix, sizeof prefix, "down_blocks.%d.downsamplers.0.", i);
        struct kx_conv_shape s = {.in = cfg->channels[i], .out = cfg->channels[i], .kernel = 3, .stride = 2};
        kx_load_conv(l, prefix, "conv", &s, &u->down[i].resample);
    }
}

/* Upwards, level i of the config comes at place levels − 1 − i. A block's input is what came before beside an
 * output of the way down: that of the same level, but for the last, which is from the level above (the
 * downsampler's, or conv_in's). */
static void load_up(struct kx_loader *l, struct kx_unet *u) {
    const struct kx_unet_config *cfg = &u->cfg;
    for (int k = 0; k < cfg->levels; k++) {
        char prefix[64];
        int ins[LAYERS_MAX], i = cfg->levels - 1 - k, count = cfg->layers[i] + 1, c = cfg->channels[i];
        int before = cfg->channels[k ? i + 1 : i], above = cfg->channels[i ? i - 1 : 0];
        for (int q = 0; q < count; q++) ins[q] = (q ? c : before) + (q + 1 < count ? c : above);
        snprintf(prefix, sizeof prefix, "up_blocks.%d.", k);
        load_level(l, u, &u->up[k], prefix, i, ins, count, cfg->up[k] == KX_BLOCK_CROSS_ATTN ? count : 0);
        if (k + 1 == cfg->levels) continue;
        snprintf(prefix, sizeof prefix, "up_blocks.%d.upsamplers.0.", k);
        struct kx_conv_shape s = {.in = c, .out = c, .kernel = 3, .stride = 1, .upsample = true};
        kx_load_conv(l, prefix, "conv", &s, &u->up[k].resample);
    }
}

int kx_unet_create(struct kx_ctx *ctx, const struct kx_unet_config *cfg, const struct kx_weights *w,
                   struct kx_unet **out, struct kn_err *err) {
    *out = NULL;
    if (cfg->only_cross_attention)
        return kn_err_set(err, KN_EUNSUPPORTED, "only_cross_attention is not supported");
    struct kx_loader l;
    int rc = kx_loader_init(&l, ctx, w, err), c = cfg->channels[0], deepest = cfg->levels - 1;
    struct kx_unet *u = kx_loader_alloc(&l, 1, sizeof *u);
    if (!u) return kx_loader_finish(&l);
    u->ctx = ctx;
    u->cfg = *cfg;
    struct kx_conv_shape s = {.in = cfg->in_channels, .out = c, .kernel = 3, .stride = 1};
    kx_load_conv(&l, "", "conv_in", &s, &u->conv_in);
    /* SiLU stands between the two and, in every residual block, behind the second */
    kx_load_linear(&l, "time_embedding.", (const char *[]){"linear_1"}, 1, c, TIME_WIDTH * c, true,
                   KX_ACT_SILU, &u->time1);
    kx_load_linear(&l, "time_embedding.", (const char *[]){"linear_2"}, 1, TIME_WIDTH * c, TIME_WIDTH * c,
                   true, KX_ACT_SILU, &u->time2);
    load_down(&l, u);
    int ins[2] = {cfg->channels[deepest], cfg->channels[deepest]};
    load_level(&l, u, &u->mid, "mid_block.", deepest, ins, 2, 1);
    load_up(&l, u);
    kx_load_norm(&l, "", "conv_norm_out", c, &u->norm_out);
    s = (struct kx_conv_shape){.in = c, .out = cfg->out_channels, .kernel = 3, .stride = 1};
    kx_load_conv(&l, "", "conv_out", &s, &u->conv_out);
    if ((rc = kx_loader_finish(&l))) {
        kx_unet_destroy(u);
        return rc;
    }
    *out = u;
    return 0;
}

static void level_fini(struct level *y) {
    for (int k = 0; k < y->count; k++) {
        kx_resnet_fini(&y->resnets[k]);
        if (y->transformers) kx_transformer_fini(&y->transformers[k]);
    }
    free(y->resnets);
    free(y->transformers);
    kx_conv_destroy(y->resample);
}

static void drop_rooms(struct kx_unet *u) {
    free(u->shift_room);
    free(u->kv_room);
    free(u->shift_of);
    free(u->kv_of);
    free(u->source);
    u->shift_room = u->kv_room = NULL;
    u->shift_of = u->kv_of = NULL;
    u->source = NULL;
    u->n = u->texts = 0;
}

static void drop_plan(struct kx_unet *u) {
    kx_lanes_fini(&u->one);
    kx_lanes_fini(&u->many);
    kx_lanes_fini(&u->alone);
    drop_rooms(u);
    u->h = u->w = u->positions = 0;
    u->lanes = NULL;
}

void kx_unet_destroy(struct kx_unet *u) {
    if (!u) return;
    drop_plan(u);
    kx_conv_destroy(u->conv_in);
    kx_conv_destroy(u->conv_out);
    kx_linear_destroy(u->time1);
    kx_linear_destroy(u->time2);
    for (int i = 0; i < u->cfg.levels; i++) {
        level_fini(&u->down[i]);
        level_fini(&u->up[i]);
    }
    level_fini(&u->mid);
    kx_norm_fini(&u->norm_out);
    free(u);
}

/* ---- one image */

/* A call of kx_unet_forward, or the plan for one. */
struct forward {
    const struct kx_unet *u;
    const float *x;
    float *out;
};

static void transform(struct kx_ctx *ctx, const struct kx_unet *u, const struct level *y, int k,
                      struct kx_tensor *x, const float *kv) {
    if (y->transformers && y->transformers[k].depth)
        kx_transformer_run(ctx, &y->transformers[k], x, kv, u->positions);
}

/* The outputs of the way down, in order; each stays where it was made. */
struct skips {
    struct kx_tensor v[SKIPS_MAX];
    int count;
};

static struct kx_tensor *push(struct kx_ctx *ctx, struct skips *s, int h, int w, int c) {
    assert(s->count < SKIPS_MAX);
    s->v[s->count] = kx_tensor_take(ctx, 1, h, w, c);
    return &s->v[s->count++];
}

static void run_down(struct kx_ctx *ctx, const struct kx_unet *u, const struct level *y, struct skips *s,
                     const float *shift, const float *kv) {
    for (int k = 0; k < y->count; k++) {
        struct kx_tensor *x = &s->v[s->count - 1], *z = push(ctx, s, x->h, x->w, y->channels);
        kx_resnet_run(ctx, &y->resnets[k], x, true, shift + y->resnets[k].shift, z);
        transform(ctx, u, y, k, z, kv);
    }
    if (!y->resample) return;
    struct kx_tensor *x = &s->v[s->count - 1];
    struct kx_tensor *z = push(ctx, s, (x->h + 1) / 2, (x->w + 1) / 2, y->channels);
    kx_conv(ctx, y->resample, x, NULL, NULL, z);
}

/* x, in place[0], becomes the level's output, again in place[0]. */
static void run_up(struct kx_ctx *ctx, const struct kx_unet *u, const struct level *y, struct skips *s,
                   const float *shift, const float *kv, float *place[2], struct kx_tensor *x) {
    for (int k = 0; k < y->count; k++) {
        size_t mark = kx_mark(ctx);
        const struct kx_tensor *skip = &s->v[--s->count];
        struct kx_tensor both = kx_tensor_take(ctx, 1, x->h, x->w, x->c + skip->c);
        kx_concat(ctx, x, skip, &both);
        x->c = y->channels;
        kx_resnet_run(ctx, &y->resnets[k], &both, false, shift + y->resnets[k].shift, x);
        kx_release(ctx, mark);
        transform(ctx, u, y, k, x, kv);
    }
    if (!y->resample) return;
    struct kx_tensor z = {place[1], 1, 2 * x->h, 2 * x->w, x->c};
    kx_conv(ctx, y->resample, x, NULL, NULL, &z);
    place[1] = place[0];
    place[0] = z.v;
    *x = z;
}

/* Floats of the largest picture on the way up. */
static size_t largest(const struct kx_unet_config *cfg, int h, int w) {
    size_t most = 0;
    for (int i = 0; i < cfg->levels; i++) {
        /* the level's own, and the one below brought to this size */
        int c = cfg->channels[i] > cfg->channels[i + 1 < cfg->levels ? i + 1 : i]
                    ? cfg->channels[i]
                    : cfg->channels[i + 1 < cfg->levels ? i + 1 : i];
        size_t n = (size_t)(h >> i) * (size_t)(w >> i) * (size_t)c;
        if (n > most) most = n;
    }
    return most;
}

static void run_image(void *arg, struct kx_ctx *ctx, int i) {
    const struct forward *f = arg;
    const struct kx_unet *u = f->u;
    const struct kx_unet_config *cfg = &u->cfg;
    bool real = !kx_planning(ctx);
    size_t mark = kx_mark(ctx), area = (size_t)u->h * (size_t)u->w;
    struct kx_tensor in = {NULL, 1, u->h, u->w, cfg->in_channels}, out = in;
    out.c = cfg->out_channels;
    const float *shift = u->shift_room, *kv = u->kv_room;
    if (real) {
        in.v = (float *)f->x + (size_t)i * area * (size_t)in.c; /* only read */
        out.v = f->out + (size_t)i * area * (size_t)out.c;
        shift = u->shift_of[i];
        kv = u->kv_of[i];
    }
    size_t most = largest(cfg, u->h, u->w);
    float *place[2] = {kx_take(ctx, most), kx_take(ctx, most)};
    struct skips s = {.count = 0};
    kx_conv(ctx, u->conv_in, &in, NULL, NULL, push(ctx, &s, u->h, u->w, cfg->channels[0]));
    for (int k = 0; k < cfg->levels; k++) run_down(ctx, u, &u->down[k], &s, shift, kv);

    struct kx_tensor *last = &s.v[s.count - 1], x = {place[0], 1, last->h, last->w, u->mid.channels};
    kx_resnet_run(ctx, &u->mid.resnets[0], last, true, shift + u->mid.resnets[0].shift, &x);
    transform(ctx, u, &u->mid, 0, &x, kv);
    kx_resnet_run(ctx, &u->mid.resnets[1], &x, false, shift + u->mid.resnets[1].shift, &x);

    for (int k = 0; k < cfg->levels; k++) run_up(ctx, u, &u->up[k], &s, shift, kv, place, &x);
    assert(s.count == 0);
    kx_group_norm(ctx, &x, u->norm_out.gamma, u->norm_out.beta, cfg->norm_groups, cfg->norm_eps, true, &x);
    kx_conv(ctx, u->conv_out, &x, NULL, NULL, &out);
    kx_release(ctx, mark);
}

/* ---- what images share */

/* The texts of a call of kx_unet_set_text. */
struct texting {
    const struct kx_unet *u;
    const float *states;
};

/* The shifts of one timestep into `shifts`. */
struct timing {
    const struct kx_unet *u;
    float timestep;
    float *shifts;
};

static void level_shifts(struct kx_ctx *ctx, const struct level *y, const struct kx_tensor *embedding,
                         float *shifts) {
    for (int k = 0; k < y->count; k++) {
        const struct kx_resnet *r = &y->resnets[k];
        struct kx_tensor to = {shifts + r->shift, 1, 1, 1, r->out};
        kx_linear(ctx, r->time, embedding, NULL, &to);
    }
}

static void run_time(void *arg, struct kx_ctx *ctx, int i) {
    const struct timing *t = arg;
    const struct kx_unet *u = t->u;
    const struct kx_unet_config *cfg = &u->cfg;
    (void)i;
    size_t mark = kx_mark(ctx);
    struct kx_tensor a = kx_tensor_take(ctx, 1, 1, 1, cfg->channels[0]);
    struct kx_tensor b = kx_tensor_take(ctx, 1, 1, 1, TIME_WIDTH * cfg->channels[0]);
    struct kx_tensor c = kx_tensor_take(ctx, 1, 1, 1, TIME_WIDTH * cfg->channels[0]);
    kx_timestep(ctx, t->timestep, a.c, cfg->flip_sin_to_cos, cfg->freq_shift, a.v);
    kx_linear(ctx, u->time1, &a, NULL, &b);
    kx_linear(ctx, u->time2, &b, NULL, &c);
    for (int k = 0; k < cfg->levels; k++) level_shifts(ctx, &u->down[k], &c, t->shifts);
    level_shifts(ctx, &u->mid, &c, t->shifts);
    for (int k = 0; k < cfg->levels; k++) level_shifts(ctx, &u->up[k], &c, t->shifts);
    kx_release(ctx, mark);
}

static void level_text(struct kx_ctx *ctx, const struct level *y, const struct kx_tensor *text, float *kv) {
    for (int k = 0; k < y->count && y->transformers; k++)
        if (y->transformers[k].depth) kx_transformer_text(ctx, &y->transformers[k], text, kv);
}

/* The i-th different text of a call of kx_unet_set_text. */
static void run_text(void *arg, struct kx_ctx *ctx, int i) {
    const struct texting *t = arg;
    const struct kx_unet *u = t->u;
    struct kx_tensor text = {NULL, 1, 1, u->positions, u->cfg.cross_attention_dim};
    float *kv = u->kv_room;
    if (!kx_planning(ctx)) {
        text.v = (float *)t->states + (size_t)u->source[i] * kx_count(&text); /* only read */
        kv += (size_t)i * (size_t)u->positions * u->kv;
    }
    for (int k = 0; k < u->cfg.levels; k++) level_text(ctx, &u->down[k], &text, kv);
    level_text(ctx, &u->mid, &text, kv);
    for (int k = 0; k < u->cfg.levels; k++) level_text(ctx, &u->up[k], &text, kv);
}

/* ---- planning and running */

/* What one lane must be able to do. */
static void plan_lane(void *arg, struct kx_ctx *ctx, int i) {
    const struct kx_unet *u = arg;
    run_text(&(struct texting){u, NULL}, ctx, i);
    run_image(&(struct forward){u, NULL, NULL}, ctx, i);
}

/* An image's bytes, roughly: the outputs of the way down, and what the first level works in (the two places,
 * the input beside the skip, a block's middle, a transformer's inner width). */
static size_t image_bytes(const struct kx_unet_config *cfg, int h, int w) {
    size_t floats = 0;
    for (int i = 0; i < cfg->levels; i++)
        floats +=
            (size_t)(cfg->layers[i] + 1) * (size_t)cfg->channels[i] * (size_t)(h >> i) * (size_t)(w >> i);
    return sizeof(float) * (floats + 6 * largest(cfg, h, w));
}

static int make_rooms(struct kx_unet *u, int n, struct kn_err *err) {
    size_t count = (size_t)n, kv = u->kv * (size_t)u->positions;
    u->shift_room = malloc(count * u->shifts * sizeof *u->shift_room);
    u->kv_room = malloc((kv ? count * kv : 1) * sizeof *u->kv_room);
    u->shift_of = calloc(count, sizeof *u->shift_of);
    u->kv_of = calloc(count, sizeof *u->kv_of);
    u->source = calloc(count, sizeof *u->source);
    if (!u->shift_room || !u->kv_room || !u->shift_of || !u->kv_of || !u->source)
        return kn_err_set(err, KN_EOOM, "out of memory for the texts of %d images", n);
    u->n = n;
    return 0;
}

int kx_unet_plan(struct kx_unet *u, int n, int h, int w, int positions, struct kn_err *err) {
    int multiple = 1 << (u->cfg.levels - 1);
    if (n < 1 || h < 1 || w < 1 || h % multiple || w % multiple || positions < 2)
        return kn_err_set(err, KN_EINVAL, "%d latents of %d × %d, texts of %d: not multiples of %d", n, w, h,
                          positions, multiple);
    if (u->h != h || u->w != w || u->positions != positions) {
        drop_plan(u);
        u->h = h;
        u->w = w;
        u->positions = positions;
    }
    int lanes = kx_ctx_lanes(u->ctx, n, image_bytes(&u->cfg, h, w)), rc = 0;
    u->lanes = lanes > 1 ? &u->many : &u->one;
    if (u->n < n) {
        drop_rooms(u);
        rc = make_rooms(u, n, err);
    }
    if (!rc && !kx_lanes_ready(&u->alone, u->ctx, 1))
        rc = kx_lanes_plan(&u->alone, u->ctx, 1, run_time, &(struct timing){u, 0, NULL}, err);
    if (!rc && !kx_lanes_ready(u->lanes, u->ctx, lanes))
        rc = kx_lanes_plan(u->lanes, u->ctx, lanes, plan_lane, u, err);
    if (rc) drop_plan(u);
    return rc;
}

int kx_unet_set_text(struct kx_unet *u, const float *states, int n, int positions, struct kn_err *err) {
    if (!u->lanes || n < 1 || n > u->n || positions != u->positions)
        return kn_err_set(err, KN_EINVAL, "%d texts of %d: planned for %d of %d", n, positions, u->n,
                          u->positions);
    size_t each = (size_t)positions * (size_t)u->cfg.cross_attention_dim;
    int different = 0;
    for (int i = 0; i < n; i++) {
        int k = 0;
        while (k < different &&
               memcmp(states + (size_t)u->source[k] * each, states + (size_t)i * each, each * sizeof *states))
            k++;
        if (k == different) u->source[different++] = i;
        u->kv_of[i] = u->kv_room + (size_t)k * (size_t)positions * u->kv;
    }
    u->texts = 0;
    int rc = kx_lanes_run(u->lanes, u->ctx, different, run_text, &(struct texting){u, states}, err);
    if (!rc) u->texts = n;
    return rc;
}

int kx_unet_forward(struct kx_unet *u, const float *x, const float *timesteps, int n, float *out,
                    struct kn_err *err) {
    if (n < 1 || n > u->texts) return kn_err_set(err, KN_EINVAL, "%d images for %d texts", n, u->texts);
    int rc = 0;
    for (int i = 0; i < n && !rc; i++) {
        int k = 0;
        while (timesteps[k] != timesteps[i]) k++;
        float *room = u->shift_room + (size_t)k * u->shifts;
        u->shift_of[i] = room;
        if (k == i)
            rc = kx_lanes_run(&u->alone, u->ctx, 1, run_time, &(struct timing){u, timesteps[i], room}, err);
    }
    return rc ? rc : kx_lanes_run(u->lanes, u->ctx, n, run_image, &(struct forward){u, x, out}, err);
}
