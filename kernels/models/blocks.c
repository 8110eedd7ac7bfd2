#include "kernels/models/blocks.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- residual block */

void kx_resnet_load(struct kx_loader *l, struct kx_resnet *r, const char *prefix, int in, int out, int groups,
                    float eps, int time_width) {
    *r = (struct kx_resnet){.in = in, .out = out, .groups = groups, .eps = eps};
    struct kx_conv_shape s = {.in = in, .out = out, .kernel = 3, .stride = 1};
    kx_load_norm(l, prefix, "norm1", in, &r->norm1);
    kx_load_conv(l, prefix, "conv1", &s, &r->conv1);
    kx_load_norm(l, prefix, "norm2", out, &r->norm2);
    s.in = out;
    kx_load_conv(l, prefix, "conv2", &s, &r->conv2);
    if (in != out) {
        s = (struct kx_conv_shape){.in = in, .out = out, .kernel = 1, .stride = 1};
        kx_load_conv(l, prefix, "conv_shortcut", &s, &r->shortcut);
    }
    if (time_width)
        kx_load_linear(l, prefix, (const char *[]){"time_emb_proj"}, 1, time_width, out, true, KX_ACT_NONE,
                       &r->time_emb_proj);
}

void kx_resnet_fini(struct kx_ctx *ctx, struct kx_resnet *r) {
    kx_norm_fini(ctx, &r->norm1);
    kx_norm_fini(ctx, &r->norm2);
    kx_conv_destroy(r->conv1);
    kx_conv_destroy(r->conv2);
    kx_conv_destroy(r->shortcut);
    kx_linear_destroy(r->time_emb_proj);
    *r = (struct kx_resnet){0};
}

void kx_resnet_run(struct kx_ctx *ctx, const struct kx_resnet *r, struct kx_tensor *x, bool keep,
                   const struct kx_rows *time_proj, struct kx_tensor *y) {
    const struct kx_tensor *residual = x;
    if (r->shortcut) {                               /* first, so that x may be worked in afterwards */
        kx_conv(ctx, r->shortcut, x, NULL, NULL, y); /* n, h, w, out */
        residual = y;
    }
    size_t mark = kx_mark(ctx);
    struct kx_tensor in = *x;
    if (keep || !r->shortcut) in = kx_tensor_take(ctx, x->n, x->h, x->w, r->in);
    kx_group_norm(ctx, x, r->norm1.gamma, r->norm1.beta, r->groups, r->eps, true, &in); /* n, h, w, in */
    struct kx_tensor mid = kx_tensor_take(ctx, x->n, x->h, x->w, r->out);
    kx_conv(ctx, r->conv1, &in, time_proj, NULL, &mid); /* n, h, w, out */
    kx_group_norm(ctx, &mid, r->norm2.gamma, r->norm2.beta, r->groups, r->eps, true, &mid);
    kx_conv(ctx, r->conv2, &mid, NULL, residual, y); /* n, h, w, out */
    kx_release(ctx, mark);
}

/* ---- attention */

void kx_self_attention(struct kx_ctx *ctx, const struct kx_tensor *qkv, int heads, bool causal,
                       struct kx_tensor *out) {
    size_t c = (size_t)out->c;
    int rows = qkv->h * qkv->w, dim = out->c / heads;
    struct kx_attention a = {.n = qkv->n,
                             .q = qkv->v,
                             .k = kx_at(ctx, qkv->v, c),
                             .v = kx_at(ctx, qkv->v, 2 * c),
                             .out = out->v,
                             .kv_image = (size_t)rows * 3 * c,
                             .q_stride = 3 * c,
                             .k_stride = 3 * c,
                             .v_stride = 3 * c,
                             .out_stride = c,
                             .rows = rows,
                             .length = rows,
                             .heads = heads,
                             .dim = dim,
                             .scale = (float)(1 / sqrt(dim)),
                             .causal = causal};
    kx_attention(ctx, &a);
}

/* ---- transformer */

#define GROUP_NORM_EPS 1e-6f /* diffusers' Transformer2DModel, whatever the UNet's norm_eps */
#define LAYER_NORM_EPS 1e-5f
#define FEED_FORWARD 4 /* inner width over outer */

static void load_block(struct kx_loader *l, struct kx_transformer_block *b, const char *prefix, int c,
                       int text_width) {
    kx_load_norm(l, prefix, "norm1", c, &b->norm1);
    kx_load_linear(l, prefix, (const char *[]){"attn1.to_q", "attn1.to_k", "attn1.to_v"}, 3, c, c, false,
                   KX_ACT_NONE, &b->qkv);
    kx_load_linear(l, prefix, (const char *[]){"attn1.to_out.0"}, 1, c, c, true, KX_ACT_NONE, &b->out1);
    kx_load_norm(l, prefix, "norm2", c, &b->norm2);
    kx_load_linear(l, prefix, (const char *[]){"attn2.to_q"}, 1, c, c, false, KX_ACT_NONE, &b->q);
    kx_load_linear(l, prefix, (const char *[]){"attn2.to_k", "attn2.to_v"}, 2, text_width, c, false,
                   KX_ACT_NONE, &b->kv);
    kx_load_linear(l, prefix, (const char *[]){"attn2.to_out.0"}, 1, c, c, true, KX_ACT_NONE, &b->out2);
    kx_load_norm(l, prefix, "norm3", c, &b->norm3);
    kx_load_linear(l, prefix, (const char *[]){"ff.net.0.proj"}, 1, c, 2 * FEED_FORWARD * c, true,
                   KX_ACT_GEGLU, &b->ff1);
    kx_load_linear(l, prefix, (const char *[]){"ff.net.2"}, 1, FEED_FORWARD * c, c, true, KX_ACT_NONE,
                   &b->ff2);
}

void kx_transformer_load(struct kx_loader *l, struct kx_transformer *t, const char *prefix, int channels,
                         int heads, int groups, int depth, int text_width, size_t *kv) {
    *t = (struct kx_transformer){.channels = channels, .heads = heads, .groups = groups, .depth = depth};
    if (channels % heads)
        kx_loader_fail(l, KN_EPARSE, "%sproj_in: %d heads do not divide %d channels", prefix, heads,
                       channels);
    kx_load_norm(l, prefix, "norm", channels, &t->norm);
    kx_load_linear(l, prefix, (const char *[]){"proj_in"}, 1, channels, channels, true, KX_ACT_NONE,
                   &t->proj_in);
    t->blocks = kx_loader_alloc(l, (size_t)depth, sizeof *t->blocks);
    for (int i = 0; i < depth && t->blocks; i++) {
        char name[KX_TENSOR_NAME_MAX / 2];
        snprintf(name, sizeof name, "%stransformer_blocks.%d.", prefix, i);
        load_block(l, &t->blocks[i], name, channels, text_width);
        t->blocks[i].kv_at = *kv;
        *kv += 2 * (size_t)channels;
    }
    kx_load_linear(l, prefix, (const char *[]){"proj_out"}, 1, channels, channels, true, KX_ACT_NONE,
                   &t->proj_out);
}

void kx_transformer_fini(struct kx_ctx *ctx, struct kx_transformer *t) {
    kx_norm_fini(ctx, &t->norm);
    kx_linear_destroy(t->proj_in);
    kx_linear_destroy(t->proj_out);
    for (int i = 0; t->blocks && i < t->depth; i++) {
        struct kx_transformer_block *b = &t->blocks[i];
        kx_norm_fini(ctx, &b->norm1);
        kx_norm_fini(ctx, &b->norm2);
        kx_norm_fini(ctx, &b->norm3);
        struct kx_linear *all[] = {b->qkv, b->out1, b->q, b->kv, b->out2, b->ff1, b->ff2};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++) kx_linear_destroy(all[k]);
    }
    free(t->blocks);
    *t = (struct kx_transformer){0};
}

/* A block's keys and values of the i-th text. */
static void *keys_at(const struct kx_ctx *ctx, const struct kx_keys *k, const struct kx_transformer *t,
                     const struct kx_transformer_block *b, int i) {
    size_t positions = (size_t)k->positions;
    return kx_at(ctx, k->v,
                 b->kv_at * positions * (size_t)k->room + (size_t)i * positions * 2 * (size_t)t->channels);
}

void kx_transformer_text(struct kx_ctx *ctx, const struct kx_transformer *t, const struct kx_tensor *text,
                         const struct kx_keys *keys, int first) {
    for (int i = 0; i < t->depth; i++) {
        const struct kx_transformer_block *b = &t->blocks[i];
        struct kx_tensor y = {keys_at(ctx, keys, t, b, first), text->n, 1, text->w, 2 * t->channels};
        kx_linear(ctx, b->kv, text, NULL, &y); /* texts, 1, positions, 2 c */
    }
}

static void self_attend(struct kx_ctx *ctx, const struct kx_transformer *t,
                        const struct kx_transformer_block *b, struct kx_tensor *x, struct kx_tensor *n) {
    size_t mark = kx_mark(ctx);
    struct kx_tensor qkv = kx_tensor_take(ctx, x->n, x->h, x->w, 3 * x->c);
    kx_layer_norm(ctx, x, b->norm1.gamma, b->norm1.beta, LAYER_NORM_EPS, n);
    kx_linear(ctx, b->qkv, n, NULL, &qkv);            /* n, h, w, 3 c */
    kx_self_attention(ctx, &qkv, t->heads, false, n); /* n, h, w, c */
    kx_linear(ctx, b->out1, n, x, x);                 /* n, h, w, c */
    kx_release(ctx, mark);
}

static void cross_attend(struct kx_ctx *ctx, const struct kx_transformer *t,
                         const struct kx_transformer_block *b, struct kx_tensor *x, struct kx_tensor *n,
                         const struct kx_keys *keys) {
    size_t mark = kx_mark(ctx), c = (size_t)x->c;
    struct kx_tensor q = kx_tensor_take(ctx, x->n, x->h, x->w, x->c);
    void *k = keys_at(ctx, keys, t, b, 0);
    int dim = x->c / t->heads;
    struct kx_attention a = {.n = x->n,
                             .q = q.v,
                             .k = k,
                             .v = kx_at(ctx, k, c),
                             .kv_image = (size_t)keys->positions * 2 * c,
                             .kv_index = keys->index,
                             .out = n->v,
                             .q_stride = c,
                             .k_stride = 2 * c,
                             .v_stride = 2 * c,
                             .out_stride = c,
                             .rows = x->h * x->w,
                             .length = keys->positions,
                             .heads = t->heads,
                             .dim = dim,
                             .scale = (float)(1 / sqrt(dim))};
    kx_layer_norm(ctx, x, b->norm2.gamma, b->norm2.beta, LAYER_NORM_EPS, n);
    kx_linear(ctx, b->q, n, NULL, &q); /* n, h, w, c */
    kx_attention(ctx, &a);             /* h · w rows against `positions` keys: n, h, w, c */
    kx_linear(ctx, b->out2, n, x, x);  /* n, h, w, c */
    kx_release(ctx, mark);
}

static void feed_forward(struct kx_ctx *ctx, const struct kx_transformer_block *b, struct kx_tensor *x,
                         struct kx_tensor *n) {
    size_t mark = kx_mark(ctx);
    struct kx_tensor inner = kx_tensor_take(ctx, x->n, x->h, x->w, FEED_FORWARD * x->c);
    kx_layer_norm(ctx, x, b->norm3.gamma, b->norm3.beta, LAYER_NORM_EPS, n);
    kx_linear(ctx, b->ff1, n, NULL, &inner); /* n, h, w, 4 c: GEGLU halves 8 c */
    kx_linear(ctx, b->ff2, &inner, x, x);    /* n, h, w, c */
    kx_release(ctx, mark);
}

void kx_transformer_run(struct kx_ctx *ctx, const struct kx_transformer *t, struct kx_tensor *x,
                        const struct kx_keys *keys) {
    size_t mark = kx_mark(ctx);
    struct kx_tensor s = kx_tensor_take(ctx, x->n, x->h, x->w, x->c);
    struct kx_tensor n = kx_tensor_take(ctx, x->n, x->h, x->w, x->c);
    kx_group_norm(ctx, x, t->norm.gamma, t->norm.beta, t->groups, GROUP_NORM_EPS, false, &n);
    kx_linear(ctx, t->proj_in, &n, NULL, &s); /* n, h, w, c */
    for (int i = 0; i < t->depth; i++) {
        self_attend(ctx, t, &t->blocks[i], &s, &n);
        cross_attend(ctx, t, &t->blocks[i], &s, &n, keys);
        feed_forward(ctx, &t->blocks[i], &s, &n);
    }
    kx_linear(ctx, t->proj_out, &s, x, x); /* n, h, w, c */
    kx_release(ctx, mark);
}
