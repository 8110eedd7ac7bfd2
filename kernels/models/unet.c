/* UNet2DConditionModel (diffusers): conv_in, levels downwards, the middle, levels upwards with the outputs of
 * the way down beside, conv_out.
 *
 * Two things do not depend on the latents and are computed once, before the loop:
 * - time_proj: each residual block's projection of the time embedding, for each different timestep. SDXL adds
 *   a condition to the time embedding (added_cond: the pooled text and time_ids); then for each pair of
 *   timestep and condition.
 * - the keys and values of cross-attention, for each different text.
 *
 * Shapes beside the calls are those of Stable Diffusion 1.5 at 512 × 512: n images of 64 × 64 latents,
 * first level 320 channels wide, texts of 77 × 768. */
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
struct unet_level {
    int count, channels;
    struct kx_resnet *resnets;
    struct kx_transformer *transformers; /* NULL for none */
    struct kx_conv *resample;            /* down or up; NULL at the last */
};

struct kx_unet {
    struct kx_ctx *ctx; /* borrowed */
    struct kx_unet_config cfg;
    struct kx_conv *conv_in, *conv_out;
    struct kx_linear *time1, *time2, *add1, *add2;                 /* add: with cfg.pooled_width */
    struct unet_level down[KX_LEVELS_MAX], mid, up[KX_LEVELS_MAX]; /* up[0] is the deepest */
    struct kx_norm norm_out;
    struct kx_parts parts;
    size_t time_proj_width; /* values of all residual blocks' time_proj of one timestep */
    size_t kv;              /* values of all blocks' keys and values of one position of a text */

    /* the plan */
    struct kx_lanes one;    /* images on one lane: one after another, or as a minibatch on a GPU */
    struct kx_lanes many;   /* images on several lanes */
    struct kx_lanes alone;  /* time_proj, and the texts' keys and values */
    struct kx_lanes *lanes; /* that of the last kx_unet_plan; NULL: none */
    int h, w, positions;
    unsigned generation; /* of the buffers below: see kx_unet_generation */

    /* what all images of a render share; own, in the context's memory */
    int times, times_room; /* rows that are set, and that there is room for: timesteps × added conditions */
    float *timesteps;      /* times_room */
    void *time_proj;       /* times_room × time_proj_width: block by block, a block's rows together */
    int added_conds, added_conds_room;
    float *time_ids; /* added_conds_room × KX_TIME_IDS */
    void *pooled;    /* added_conds_room × pooled_width */
    int texts, texts_room;
    void *states, *kv_v; /* texts_room × positions × cross_attention_dim; … × kv, as kx_keys has it */
};

/* ---- creation */

/* Names are prefix + "resnets.K." and prefix + "attentions.K.". `ins`: input channels of each residual block;
 * i: the level in the config's order. */
static void load_level(struct kx_loader *l, struct kx_unet *u, struct unet_level *y, const char *prefix,
                       int i, const int *ins, int count, int transformers) {
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
        r->time_proj_at = u->time_proj_width;
        u->time_proj_width += (size_t)y->channels;
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
    kx_loader_init(&l, ctx, w, err);
    int c = cfg->channels[0], deepest = cfg->levels - 1;
    struct kx_unet *u = kx_loader_alloc(&l, 1, sizeof *u);
    if (!u) return kx_loader_finish(&l);
    u->ctx = ctx;
    l.parts = &u->parts;
    u->cfg = *cfg;
    struct kx_conv_shape s = {.in = cfg->in_channels, .out = c, .kernel = 3, .stride = 1};
    kx_load_conv(&l, "", "conv_in", &s, &u->conv_in);
    /* SiLU stands between the two and, in every residual block, behind the second, or its sum with another */
    kx_load_linear(&l, "time_embedding.", (const char *[]){"linear_1"}, 1, c, TIME_WIDTH * c, true,
                   KX_ACT_SILU, &u->time1);
    kx_load_linear(&l, "time_embedding.", (const char *[]){"linear_2"}, 1, TIME_WIDTH * c, TIME_WIDTH * c,
                   true, cfg->pooled_width ? KX_ACT_NONE : KX_ACT_SILU, &u->time2);
    if (cfg->pooled_width) {
        int in = cfg->pooled_width + KX_TIME_IDS * cfg->addition_time_width;
        kx_load_linear(&l, "add_embedding.", (const char *[]){"linear_1"}, 1, in, TIME_WIDTH * c, true,
                       KX_ACT_SILU, &u->add1);
        kx_load_linear(&l, "add_embedding.", (const char *[]){"linear_2"}, 1, TIME_WIDTH * c, TIME_WIDTH * c,
                       true, KX_ACT_NONE, &u->add2);
    }
    load_down(&l, u);
    int ins[2] = {cfg->channels[deepest], cfg->channels[deepest]};
    load_level(&l, u, &u->mid, "mid_block.", deepest, ins, 2, 1);
    load_up(&l, u);
    kx_load_norm(&l, "", "conv_norm_out", c, &u->norm_out);
    s = (struct kx_conv_shape){.in = c, .out = cfg->out_channels, .kernel = 3, .stride = 1};
    kx_load_conv(&l, "", "conv_out", &s, &u->conv_out);
    int rc = kx_loader_finish(&l);
    if (rc) {
        kx_unet_destroy(u);
        return rc;
    }
    *out = u;
    return 0;
}

static void level_fini(struct kx_ctx *ctx, struct unet_level *y) {
    for (int k = 0; k < y->count; k++) {
        kx_resnet_fini(ctx, &y->resnets[k]);
        if (y->transformers) kx_transformer_fini(ctx, &y->transformers[k]);
    }
    free(y->resnets);
    free(y->transformers);
    kx_conv_destroy(y->resample);
}

static void drop_times(struct kx_unet *u) {
    kx_free(u->ctx, u->timesteps);
    kx_free(u->ctx, u->time_proj);
    u->timesteps = NULL;
    u->time_proj = NULL;
    u->times = u->times_room = 0;
    u->generation++;
}

static void drop_added_conds(struct kx_unet *u) {
    kx_free(u->ctx, u->time_ids);
    kx_free(u->ctx, u->pooled);
    u->time_ids = NULL;
    u->pooled = NULL;
    u->added_conds = u->added_conds_room = 0;
}

static void drop_texts(struct kx_unet *u) {
    kx_free(u->ctx, u->states);
    kx_free(u->ctx, u->kv_v);
    u->states = u->kv_v = NULL;
    u->texts = u->texts_room = 0;
    u->generation++;
}

static void drop_plan(struct kx_unet *u) {
    kx_lanes_fini(&u->one, u->ctx);
    kx_lanes_fini(&u->many, u->ctx);
    kx_lanes_fini(&u->alone, u->ctx);
    drop_times(u);
    drop_texts(u);
    u->h = u->w = u->positions = 0;
    u->lanes = NULL;
}

void kx_unet_forget(struct kx_unet *u) {
    drop_plan(u);
}

struct kx_parts *kx_unet_parts(struct kx_unet *u) {
    return &u->parts;
}

void kx_unet_destroy(struct kx_unet *u) {
    if (!u) return;
    drop_plan(u);
    drop_added_conds(u);
    kx_conv_destroy(u->conv_in);
    kx_conv_destroy(u->conv_out);
    kx_linear_destroy(u->time1);
    kx_linear_destroy(u->time2);
    kx_linear_destroy(u->add1);
    kx_linear_destroy(u->add2);
    for (int i = 0; i < u->cfg.levels; i++) {
        level_fini(u->ctx, &u->down[i]);
        level_fini(u->ctx, &u->up[i]);
    }
    level_fini(u->ctx, &u->mid);
    kx_norm_fini(u->ctx, &u->norm_out);
    kx_parts_fini(&u->parts);
    free(u);
}

/* ---- images */

/* A call of kx_unet_forward, or the plan for one. */
struct forward {
    const struct kx_unet *u;
    const void *x;
    void *out;
    const int32_t *time_row, *text_row;
};

/* The conditions of a run's images: which row of time_proj each has, and which text. */
struct given {
    const struct kx_unet *u;
    const int32_t *time_row;
    struct kx_keys keys;
};

static struct kx_rows time_proj_of(struct kx_ctx *ctx, const struct given *g, const struct kx_resnet *r) {
    const struct kx_unet *u = g->u;
    return (struct kx_rows){kx_at(ctx, u->time_proj, r->time_proj_at * (size_t)u->times_room), (size_t)r->out,
                            g->time_row};
}

static void resnet(struct kx_ctx *ctx, const struct given *g, const struct kx_resnet *r, struct kx_tensor *x,
                   bool keep, struct kx_tensor *y) {
    struct kx_rows time_proj = time_proj_of(ctx, g, r);
    kx_resnet_run(ctx, r, x, keep, &time_proj, y);
}

static void transform(struct kx_ctx *ctx, const struct given *g, const struct unet_level *y, int k,
                      struct kx_tensor *x) {
    if (y->transformers && y->transformers[k].depth)
        kx_transformer_run(ctx, &y->transformers[k], x, &g->keys);
}

/* The skip connections: the outputs of the way down, in order. Each stays where it was made. */
struct skips {
    struct kx_tensor v[SKIPS_MAX];
    int count;
};

static struct kx_tensor *push(struct kx_ctx *ctx, struct skips *s, int n, int h, int w, int c) {
    assert(s->count < SKIPS_MAX);
    s->v[s->count] = kx_tensor_take(ctx, n, h, w, c);
    return &s->v[s->count++];
}

static void run_down(struct kx_ctx *ctx, const struct given *g, const struct unet_level *y, struct skips *s) {
    for (int k = 0; k < y->count; k++) {
        struct kx_tensor *x = &s->v[s->count - 1], *z = push(ctx, s, x->n, x->h, x->w, y->channels);
        resnet(ctx, g, &y->resnets[k], x, true, z); /* n, h, w, channels */
        transform(ctx, g, y, k, z);
    }
    if (!y->resample) return;
    struct kx_tensor *x = &s->v[s->count - 1];
    struct kx_tensor *z = push(ctx, s, x->n, (x->h + 1) / 2, (x->w + 1) / 2, y->channels);
    kx_conv(ctx, y->resample, x, NULL, NULL, z); /* n, h / 2, w / 2, channels */
}

/* One level upwards. x lies in place[0], and so does the level's output; place[1] is free for the upsampled
 * one. */
static void run_up(struct kx_ctx *ctx, const struct given *g, const struct unet_level *y, struct skips *s,
                   void *place[2], struct kx_tensor *x) {
    for (int k = 0; k < y->count; k++) {
        size_t mark = kx_mark(ctx);
        const struct kx_tensor *skip = &s->v[--s->count];
        struct kx_tensor both = kx_tensor_take(ctx, x->n, x->h, x->w, x->c + skip->c);
        kx_concat(ctx, x, skip, &both); /* n, h, w, channels before + channels of the skip */
        x->c = y->channels;
        resnet(ctx, g, &y->resnets[k], &both, false, x); /* n, h, w, channels */
        kx_release(ctx, mark);
        transform(ctx, g, y, k, x);
    }
    if (!y->resample) return;
    struct kx_tensor z = {place[1], x->n, 2 * x->h, 2 * x->w, x->c};
    kx_conv(ctx, y->resample, x, NULL, NULL, &z); /* n, 2 h, 2 w, channels */
    place[1] = place[0];
    place[0] = z.v;
    *x = z;
}

/* Values of an image's largest tensor on the way up. */
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

static void run_images(void *arg, struct kx_ctx *ctx, int first, int count) {
    const struct forward *f = arg;
    const struct kx_unet *u = f->u;
    const struct kx_unet_config *cfg = &u->cfg;
    size_t mark = kx_mark(ctx), before = (size_t)first * (size_t)u->h * (size_t)u->w;
    struct kx_tensor in = {NULL, count, u->h, u->w, cfg->in_channels}, out = in;
    out.c = cfg->out_channels;
    in.v = kx_at(ctx, f->x, before * (size_t)in.c); /* only read */
    out.v = kx_at(ctx, f->out, before * (size_t)out.c);
    struct given g = {u, f->time_row + first, {u->kv_v, u->positions, u->texts_room, f->text_row + first}};
    size_t most = largest(cfg, u->h, u->w) * (size_t)count;
    void *place[2] = {kx_take(ctx, most), kx_take(ctx, most)};
    struct skips s = {.count = 0};
    /* n, 64, 64, 4 → n, 64, 64, 320 */
    kx_conv(ctx, u->conv_in, &in, NULL, NULL, push(ctx, &s, count, u->h, u->w, cfg->channels[0]));
    /* → n, 32, 32, 320 → n, 16, 16, 640 → n, 8, 8, 1280 → n, 8, 8, 1280 */
    for (int k = 0; k < cfg->levels; k++) run_down(ctx, &g, &u->down[k], &s);

    struct kx_tensor *last = &s.v[s.count - 1], x = {place[0], count, last->h, last->w, u->mid.channels};
    resnet(ctx, &g, &u->mid.resnets[0], last, true, &x);
    transform(ctx, &g, &u->mid, 0, &x);
    resnet(ctx, &g, &u->mid.resnets[1], &x, false, &x); /* n, 8, 8, 1280 */

    /* → n, 16, 16, 1280 → n, 32, 32, 1280 → n, 64, 64, 640 → n, 64, 64, 320 */
    for (int k = 0; k < cfg->levels; k++) run_up(ctx, &g, &u->up[k], &s, place, &x);
    assert(s.count == 0);
    kx_group_norm(ctx, &x, u->norm_out.gamma, u->norm_out.beta, cfg->norm_groups, cfg->norm_eps, true, &x);
    kx_conv(ctx, u->conv_out, &x, NULL, NULL, &out); /* n, 64, 64, 4 */
    kx_release(ctx, mark);
}

/* ---- what images share */

static void level_time_proj(struct kx_ctx *ctx, const struct kx_unet *u, const struct unet_level *y,
                            const struct kx_tensor *embedding, int first) {
    for (int k = 0; k < y->count; k++) {
        const struct kx_resnet *r = &y->resnets[k];
        size_t at = r->time_proj_at * (size_t)u->times_room + (size_t)first * (size_t)r->out;
        struct kx_tensor to = {kx_at(ctx, u->time_proj, at), embedding->n, 1, 1, r->out};
        kx_linear(ctx, r->time_emb_proj, embedding, NULL, &to); /* rows, 1, 1, out */
    }
}

/* y: the embedding of `count` added conditions from the first on, to be added to the time embedding. */
static void run_added_conds(struct kx_ctx *ctx, const struct kx_unet *u, int first, int count,
                            struct kx_tensor *y) {
    const struct kx_unet_config *cfg = &u->cfg;
    size_t mark = kx_mark(ctx), before = (size_t)first;
    int width = KX_TIME_IDS * cfg->addition_time_width;
    struct kx_tensor pooled = {NULL, count, 1, 1, cfg->pooled_width};
    pooled.v = kx_at(ctx, u->pooled, before * (size_t)pooled.c); /* only read */
    struct kx_tensor sizes = kx_tensor_take(ctx, count, 1, 1, width);
    struct kx_tensor both = kx_tensor_take(ctx, count, 1, 1, pooled.c + width);
    struct kx_tensor inner = kx_tensor_take(ctx, count, 1, 1, y->c);
    struct kx_tensor one = {sizes.v, KX_TIME_IDS * count, 1, 1,
                            cfg->addition_time_width}; /* number by number */
    kx_timestep(ctx, u->time_ids + KX_TIME_IDS * before, one.n, cfg->flip_sin_to_cos, cfg->freq_shift, &one);
    kx_concat(ctx, &pooled, &sizes, &both);       /* count, 1, 1, 1280 + 6 · 256 (SDXL) */
    kx_linear(ctx, u->add1, &both, NULL, &inner); /* count, 1, 1, 1280 */
    kx_linear(ctx, u->add2, &inner, NULL, y);     /* count, 1, 1, 1280 */
    kx_release(ctx, mark);
}

/* Fills `count` rows of time_proj from the first on. A CPU calls it row by row, a GPU for all rows at once.
 */
static void run_times(void *arg, struct kx_ctx *ctx, int first, int count) {
    const struct kx_unet *u = arg;
    const struct kx_unet_config *cfg = &u->cfg;
    /* row i · m + j is of timestep i and added condition j: one row has one of each, all rows have all of
     * each */
    int m = cfg->pooled_width ? u->added_conds : 1, width = TIME_WIDTH * cfg->channels[0];
    int added_conds = count == 1 ? 1 : m, times = count / added_conds;
    assert(times * added_conds == count && (count == 1 || first == 0));
    size_t mark = kx_mark(ctx);
    struct kx_tensor a = kx_tensor_take(ctx, times, 1, 1, cfg->channels[0]);
    struct kx_tensor b = kx_tensor_take(ctx, times, 1, 1, width);
    struct kx_tensor c = kx_tensor_take(ctx, times, 1, 1, width);
    kx_timestep(ctx, u->timesteps + first / m, times, cfg->flip_sin_to_cos, cfg->freq_shift, &a);
    kx_linear(ctx, u->time1, &a, NULL, &b); /* times, 1, 1, 320 → times, 1, 1, 1280 */
    kx_linear(ctx, u->time2, &b, NULL, &c); /* times, 1, 1, 1280 */
    if (cfg->pooled_width) {
        struct kx_tensor added = kx_tensor_take(ctx, added_conds, 1, 1, width), sum;
        run_added_conds(ctx, u, first % m, added_conds, &added);
        sum = kx_tensor_take(ctx, count, 1, 1, width);
        kx_add_silu(ctx, &c, &added, &sum); /* times · added_conds, 1, 1, 1280 */
        c = sum;
    }
    for (int k = 0; k < cfg->levels; k++) level_time_proj(ctx, u, &u->down[k], &c, first);
    level_time_proj(ctx, u, &u->mid, &c, first);
    for (int k = 0; k < cfg->levels; k++) level_time_proj(ctx, u, &u->up[k], &c, first);
    kx_release(ctx, mark);
}

static void level_text(struct kx_ctx *ctx, const struct unet_level *y, const struct kx_tensor *text,
                       const struct kx_keys *keys, int first) {
    for (int k = 0; k < y->count && y->transformers; k++)
        if (y->transformers[k].depth) kx_transformer_text(ctx, &y->transformers[k], text, keys, first);
}

/* The keys and values of `count` texts from the first on. */
static void run_texts(void *arg, struct kx_ctx *ctx, int first, int count) {
    const struct kx_unet *u = arg;
    struct kx_tensor text = {NULL, count, 1, u->positions, u->cfg.cross_attention_dim};
    text.v = kx_at(ctx, u->states, (size_t)first * (size_t)text.w * (size_t)text.c);
    struct kx_keys keys = {u->kv_v, u->positions, u->texts_room, NULL};
    for (int k = 0; k < u->cfg.levels; k++) level_text(ctx, &u->down[k], &text, &keys, first);
    level_text(ctx, &u->mid, &text, &keys, first);
    for (int k = 0; k < u->cfg.levels; k++) level_text(ctx, &u->up[k], &text, &keys, first);
}

/* ---- planning and running */

/* The forward pass that a lane plans: pointers are not followed while planning. */
static void plan_lane(void *arg, struct kx_ctx *ctx, int first, int count) {
    const struct kx_unet *u = arg;
    static const int32_t unused[1]; /* nothing is read while planning */
    run_images(&(struct forward){u, NULL, NULL, unused, unused}, ctx, first, count);
}

/* An image's values, roughly: the outputs of the way down, and what the first level works in (the two places,
 * the input beside the skip, a block's middle, a transformer's inner width). */
size_t kx_unet_image_values(const struct kx_unet_config *cfg, int h, int w) {
    size_t values = 0;
    for (int i = 0; i < cfg->levels; i++)
        values +=
            (size_t)(cfg->layers[i] + 1) * (size_t)cfg->channels[i] * (size_t)(h >> i) * (size_t)(w >> i);
    return values + 6 * largest(cfg, h, w);
}

/* Values of all blocks' keys and values of one position of a text: what kx_transformer_load counts. */
static size_t kv_values(const struct kx_unet_config *cfg) {
    size_t kv = 0;
    for (int i = 0; i < cfg->levels; i++) {
        size_t down = cfg->down[i] == KX_BLOCK_CROSS_ATTN ? (size_t)cfg->layers[i] : 0,
               up = cfg->up[cfg->levels - 1 - i] == KX_BLOCK_CROSS_ATTN ? (size_t)cfg->layers[i] + 1 : 0;
        kv += (down + up) * (size_t)cfg->transformer_depth[i] * 2 * (size_t)cfg->channels[i];
    }
    int deepest = cfg->levels - 1; /* the block in the middle */
    return kv + (size_t)cfg->transformer_depth[deepest] * 2 * (size_t)cfg->channels[deepest];
}

size_t kx_unet_text_values(const struct kx_unet_config *cfg, int positions) {
    return (size_t)positions * (kv_values(cfg) + (size_t)cfg->cross_attention_dim);
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
    int lanes = kx_ctx_lanes(u->ctx, n, kx_value_bytes(u->ctx) * kx_unet_image_values(&u->cfg, h, w)), rc = 0;
    u->lanes = lanes > 1 ? &u->many : &u->one;
    if (!kx_lanes_ready(u->lanes, u->ctx, lanes, n))
        rc = kx_lanes_plan(u->lanes, u->ctx, lanes, n, plan_lane, u, err);
    if (rc) drop_plan(u);
    return rc;
}

int kx_unet_bytes(struct kx_unet *u, int n, int h, int w, int positions, size_t *bytes, struct kn_err *err) {
    struct kx_unet copy = *u; /* counts with another size; its plan stays */
    copy.h = h;
    copy.w = w;
    copy.positions = positions;
    int rc = kx_lanes_count(u->ctx, n, plan_lane, &copy, bytes, err);
    *bytes +=
        (size_t)n * (size_t)positions * (u->kv + (size_t)u->cfg.cross_attention_dim) * kx_value_bytes(u->ctx);
    return rc;
}

unsigned kx_unet_generation(const struct kx_unet *u) {
    return u->generation + u->one.generation + u->many.generation;
}

/* Plans and runs fn for i < n on one lane. */
static int run_alone(struct kx_unet *u, int n, kx_images fn, struct kn_err *err) {
    int rc = kx_lanes_plan(&u->alone, u->ctx, 1, n, fn, u, err);
    return rc ? rc : kx_lanes_run(&u->alone, u->ctx, n, fn, u, err);
}

int kx_unet_set_added_cond(struct kx_unet *u, const float *pooled, const float *time_ids, int n,
                           struct kn_err *err) {
    size_t count = (size_t)n, width = (size_t)u->cfg.pooled_width;
    if (n < 1 || n > KX_UNET_TIMES_MAX || !width)
        return kn_err_set(err, KN_EINVAL, "%d additions to the time embedding, %zu wide", n, width);
    if (n > u->added_conds_room) {
        drop_added_conds(u);
        u->time_ids = kx_alloc(u->ctx, count * KX_TIME_IDS * sizeof *u->time_ids);
        u->pooled = kx_alloc(u->ctx, count * width * kx_value_bytes(u->ctx));
        if (!u->time_ids || !u->pooled) {
            drop_added_conds(u);
            return kn_err_set(err, KN_EOOM, "out of memory for %d texts", n);
        }
        u->added_conds_room = n;
    }
    u->added_conds = n;
    u->times = 0;
    kx_upload(u->ctx, u->time_ids, time_ids, count * KX_TIME_IDS * sizeof *time_ids);
    kx_upload_values(u->ctx, u->pooled, pooled, count * width);
    return kx_ctx_error(u->ctx, err);
}

int kx_unet_set_times(struct kx_unet *u, const float *timesteps, int n, struct kn_err *err) {
    int m = u->cfg.pooled_width ? u->added_conds : 1;
    if (n < 1 || n > KX_UNET_TIMES_MAX || m < 1)
        return kn_err_set(err, KN_EINVAL, "%d timesteps with %d additions, not 1 to %d", n, m,
                          KX_UNET_TIMES_MAX);
    if (m > KX_UNET_TIMES_MAX / n) /* fewer images have fewer of either */
        return kn_err_set(err, KN_EOOM, "%d timesteps of %d texts are more than %d", n, m, KX_UNET_TIMES_MAX);
    int rows = n * m;
    if (rows > u->times_room) {
        drop_times(u);
        u->timesteps = kx_alloc(u->ctx, (size_t)rows * sizeof *u->timesteps);
        u->time_proj = kx_alloc(u->ctx, (size_t)rows * u->time_proj_width * kx_value_bytes(u->ctx));
        if (!u->timesteps || !u->time_proj) {
            drop_times(u);
            return kn_err_set(err, KN_EOOM, "out of memory for %d timesteps", rows);
        }
        u->times_room = rows;
    }
    u->times = 0;
    kx_upload(u->ctx, u->timesteps, timesteps, (size_t)n * sizeof *timesteps);
    int rc = run_alone(u, rows, run_times, err);
    if (!rc) u->times = rows;
    return rc;
}

int kx_unet_set_text(struct kx_unet *u, const float *states, int n, int positions, struct kn_err *err) {
    if (!u->lanes || n < 1 || positions != u->positions)
        return kn_err_set(err, KN_EINVAL, "%d texts of %d: planned for texts of %d", n, positions,
                          u->positions);
    size_t values = (size_t)n * (size_t)positions, bytes = kx_value_bytes(u->ctx);
    if (n > u->texts_room) {
        drop_texts(u);
        u->states = kx_alloc(u->ctx, values * (size_t)u->cfg.cross_attention_dim * bytes);
        u->kv_v = kx_alloc(u->ctx, (u->kv ? values * u->kv : 1) * bytes);
        if (!u->states || !u->kv_v) {
            drop_texts(u);
            return kn_err_set(err, KN_EOOM, "out of memory for %d texts", n);
        }
        u->texts_room = n;
    }
    u->texts = 0;
    kx_upload_values(u->ctx, u->states, states, values * (size_t)u->cfg.cross_attention_dim);
    int rc = run_alone(u, n, run_texts, err);
    if (!rc) u->texts = n;
    return rc;
}

int kx_unet_forward(struct kx_unet *u, const void *x, const int32_t *time_row, const int32_t *text_row, int n,
                    void *out, struct kn_err *err) {
    if (!u->lanes || n < 1 || !u->times || !u->texts)
        return kn_err_set(err, KN_EINVAL, "%d images, %d timesteps, %d texts", n, u->times, u->texts);
    return kx_lanes_run(u->lanes, u->ctx, n, run_images, &(struct forward){u, x, out, time_row, text_row},
                        err);
}
