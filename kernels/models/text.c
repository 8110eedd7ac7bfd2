/* CLIP's text encoder (transformers' CLIPTextModel and CLIPTextModelWithProjection): embeddings, causal
 * transformer layers, the final norm; for SDXL the states before the last layer instead, and the projection
 * of the state at the end of the text. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/models/blocks.h"
#include "kernels/models/lanes.h"

struct layer {
    struct kx_norm norm1, norm2;
    struct kx_linear *qkv, *out, *fc1, *fc2;
};

struct kx_text {
    struct kx_ctx *ctx; /* borrowed */
    struct kx_text_config cfg;
    struct kx_table *tokens, *places; /* embeddings: vocab_size and positions_max rows of hidden_size */
    int layer_count, states_at;       /* layers that are run; the states are those before this one */
    struct layer *layers;
    struct kx_norm norm;          /* of the states, or of the pooled one */
    struct kx_linear *projection; /* with cfg.projected */
    struct kx_parts parts;
    struct kx_lanes lanes;
    int planned; /* positions */
    int room;    /* what follows is for so many texts of `planned` positions; own, the context's memory */
    int32_t *ids, *ends; /* ends: where each text ends */
    void *states, *pooled;
};

static void load_layer(struct kx_loader *l, const struct kx_text_config *cfg, const char *prefix,
                       struct layer *y) {
    int c = cfg->hidden_size;
    kx_load_norm(l, prefix, "layer_norm1", c, &y->norm1);
    kx_load_linear(l, prefix, (const char *[]){"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}, 3,
                   c, c, true, KX_ACT_NONE, &y->qkv);
    kx_load_linear(l, prefix, (const char *[]){"self_attn.out_proj"}, 1, c, c, true, KX_ACT_NONE, &y->out);
    kx_load_norm(l, prefix, "layer_norm2", c, &y->norm2);
    kx_load_linear(l, prefix, (const char *[]){"mlp.fc1"}, 1, c, cfg->intermediate_size, true,
                   cfg->quick_gelu ? KX_ACT_QUICK_GELU : KX_ACT_GELU, &y->fc1);
    kx_load_linear(l, prefix, (const char *[]){"mlp.fc2"}, 1, cfg->intermediate_size, c, true, KX_ACT_NONE,
                   &y->fc2);
}

static bool has_norm(const struct kx_text_config *cfg) {
    return cfg->projected || !cfg->penultimate;
}

int kx_text_create(struct kx_ctx *ctx, const struct kx_text_config *cfg, const struct kx_weights *w,
                   struct kx_text **out, struct kn_err *err) {
    *out = NULL;
    struct kx_loader l;
    kx_loader_init(&l, ctx, w, err);
    struct kx_text *t = kx_loader_alloc(&l, 1, sizeof *t);
    if (!t) return kx_loader_finish(&l);
    t->ctx = ctx;
    l.parts = &t->parts;
    t->cfg = *cfg;
    /* transformers 5 writes the names without this prefix */
    bool bare = kx_weights_find(w, "embeddings.token_embedding.weight") ||
                kx_weights_find(w, "final_layer_norm.weight");
    const char *prefix = bare ? "" : "text_model.";
    char name[KX_TENSOR_NAME_MAX / 2];
    snprintf(name, sizeof name, "%sembeddings.", prefix);
    kx_load_table(&l, name, "token_embedding", cfg->vocab_size, cfg->hidden_size, &t->tokens);
    kx_load_table(&l, name, "position_embedding", cfg->positions_max, cfg->hidden_size, &t->places);
    t->states_at = cfg->layers - cfg->penultimate;
    t->layer_count = cfg->projected ? cfg->layers : t->states_at;
    t->layers = kx_loader_alloc(&l, (size_t)t->layer_count, sizeof *t->layers);
    for (int i = 0; i < t->layer_count && t->layers; i++) {
        snprintf(name, sizeof name, "%sencoder.layers.%d.", prefix, i);
        load_layer(&l, cfg, name, &t->layers[i]);
    }
    if (has_norm(cfg)) {
        kx_load_norm(&l, prefix, "final_layer_norm", cfg->hidden_size, &t->norm);
    } else { /* nobody reads what comes of them */
        char norm[KX_TENSOR_NAME_MAX / 2];
        snprintf(name, sizeof name, "%sencoder.layers.%d.", prefix, cfg->layers - 1);
        snprintf(norm, sizeof norm, "%sfinal_layer_norm.", prefix);
        kx_loader_ignore(&l, (const char *[]){name, norm, NULL});
    }
    if (cfg->projected)
        kx_load_linear(&l, "", (const char *[]){"text_projection"}, 1, cfg->hidden_size, cfg->projection_dim,
                       false, KX_ACT_NONE, &t->projection);
    /* a counter that old versions stored, and what belongs to CLIP's other half */
    kx_loader_ignore(&l, (const char *[]){"text_model.embeddings.position_ids", "embeddings.position_ids",
                                          "logit_scale", "vision_model.", "visual_projection.",
                                          cfg->projected ? NULL : "text_projection.", NULL});
    int rc = kx_loader_finish(&l);
    if (rc) {
        kx_text_destroy(t);
        return rc;
    }
    *out = t;
    return 0;
}

static void drop_room(struct kx_text *t) {
    kx_free(t->ctx, t->ids);
    kx_free(t->ctx, t->ends);
    kx_free(t->ctx, t->states);
    kx_free(t->ctx, t->pooled);
    t->ids = t->ends = NULL;
    t->states = t->pooled = NULL;
    t->room = 0;
}

struct kx_parts *kx_text_parts(struct kx_text *t) {
    return &t->parts;
}

void kx_text_destroy(struct kx_text *t) {
    if (!t) return;
    for (int i = 0; t->layers && i < t->layer_count; i++) {
        struct layer *y = &t->layers[i];
        kx_norm_fini(t->ctx, &y->norm1);
        kx_norm_fini(t->ctx, &y->norm2);
        kx_linear_destroy(y->qkv);
        kx_linear_destroy(y->out);
        kx_linear_destroy(y->fc1);
        kx_linear_destroy(y->fc2);
    }
    free(t->layers);
    kx_norm_fini(t->ctx, &t->norm);
    kx_linear_destroy(t->projection);
    kx_table_destroy(t->tokens);
    kx_table_destroy(t->places);
    kx_lanes_fini(&t->lanes, t->ctx);
    drop_room(t);
    kx_parts_fini(&t->parts);
    free(t);
}

/* From x to y, s between them; each may be the one before it. n: worked in. */
static void run_layer(struct kx_ctx *ctx, const struct kx_text_config *cfg, const struct layer *l,
                      const struct kx_tensor *x, struct kx_tensor *s, struct kx_tensor *y,
                      struct kx_tensor *n) {
    size_t mark = kx_mark(ctx);
    struct kx_tensor qkv = kx_tensor_take(ctx, s->n, 1, s->w, 3 * s->c);
    kx_layer_norm(ctx, x, l->norm1.gamma, l->norm1.beta, cfg->layer_norm_eps, n);
    kx_linear(ctx, l->qkv, n, NULL, &qkv);
    kx_self_attention(ctx, &qkv, cfg->heads, true, n);
    kx_linear(ctx, l->out, n, x, s);
    kx_release(ctx, mark);

    struct kx_tensor inner = kx_tensor_take(ctx, s->n, 1, s->w, cfg->intermediate_size);
    kx_layer_norm(ctx, s, l->norm2.gamma, l->norm2.beta, cfg->layer_norm_eps, n);
    kx_linear(ctx, l->fc1, n, NULL, &inner);
    kx_linear(ctx, l->fc2, &inner, s, y);
    kx_release(ctx, mark);
}

/* The projection of the states where the texts end. */
static void pool(struct kx_ctx *ctx, const struct kx_text *t, const struct kx_tensor *s, int first) {
    size_t mark = kx_mark(ctx);
    struct kx_tensor at = kx_tensor_take(ctx, s->n, 1, 1, s->c), out = at;
    out.c = t->cfg.projection_dim;
    out.v = kx_at(ctx, t->pooled, (size_t)first * (size_t)out.c);
    kx_gather(ctx, s, t->ends + first, &at);
    kx_layer_norm(ctx, &at, t->norm.gamma, t->norm.beta, t->cfg.layer_norm_eps, &at);
    kx_linear(ctx, t->projection, &at, NULL, &out);
    kx_release(ctx, mark);
}

/* `count` texts from the first on, from ids to states. */
static void encode(void *arg, struct kx_ctx *ctx, int first, int count) {
    const struct kx_text *t = arg;
    int c = t->cfg.hidden_size, positions = t->planned;
    size_t mark = kx_mark(ctx), before = (size_t)first * (size_t)positions;
    struct kx_tensor s = kx_tensor_take(ctx, count, 1, positions, c);
    struct kx_tensor n = kx_tensor_take(ctx, count, 1, positions, c);
    struct kx_tensor out = {kx_at(ctx, t->states, before * (size_t)c), count, 1, positions, c};
    /* what comes before layer `states_at` goes to `out` and stays there, when that is what is wanted */
    bool early = t->cfg.penultimate;
    kx_embed(ctx, t->tokens, t->places, t->ids + before, early && t->states_at == 0 ? &out : &s);
    for (int k = 0; k < t->layer_count; k++)
        run_layer(ctx, &t->cfg, &t->layers[k], early && k == t->states_at ? &out : &s, &s,
                  early && k + 1 == t->states_at ? &out : &s, &n);
    if (!early) kx_layer_norm(ctx, &s, t->norm.gamma, t->norm.beta, t->cfg.layer_norm_eps, &out);
    if (t->projection) pool(ctx, t, &s, first);
    kx_release(ctx, mark);
}

static int make_room(struct kx_text *t, int n, int positions, struct kn_err *err) {
    if (n <= t->room && positions == t->planned) return 0;
    drop_room(t);
    size_t count = (size_t)n * (size_t)positions, bytes = kx_value_bytes(t->ctx);
    t->ids = kx_alloc(t->ctx, count * sizeof *t->ids);
    t->ends = kx_alloc(t->ctx, (size_t)n * sizeof *t->ends);
    t->states = kx_alloc(t->ctx, count * (size_t)t->cfg.hidden_size * bytes);
    if (t->projection) t->pooled = kx_alloc(t->ctx, (size_t)n * (size_t)t->cfg.projection_dim * bytes);
    t->room = n;
    t->planned = positions;
    if (t->ids && t->ends && t->states && (t->pooled || !t->projection)) return 0;
    drop_room(t);
    return kn_err_set(err, KN_EOOM, "out of memory for %d texts", n);
}

/* Where a text's pooled state is: transformers takes the largest id where the config says 2, which is what it
 * said for years of every CLIP, else the first id that the config says (and the first place if there is
 * none).
 */
static int32_t end_of(const struct kx_text_config *cfg, const int32_t *ids, int positions) {
    int32_t at = 0;
    for (int32_t p = 1; p < positions; p++)
        if (cfg->eos_token_id == 2 ? ids[p] > ids[at]
                                   : ids[p] == cfg->eos_token_id && ids[at] != cfg->eos_token_id)
            at = p;
    return at;
}

static int upload(struct kx_text *t, const int32_t *ids, int n, int positions, struct kn_err *err) {
    int32_t *ends = malloc((size_t)n * sizeof *ends);
    if (!ends) return kn_err_set(err, KN_ENOMEM, "out of memory for %d texts", n);
    for (int i = 0; i < n; i++) ends[i] = end_of(&t->cfg, ids + (size_t)i * (size_t)positions, positions);
    kx_upload(t->ctx, t->ids, ids, (size_t)n * (size_t)positions * sizeof *ids);
    kx_upload(t->ctx, t->ends, ends, (size_t)n * sizeof *ends);
    free(ends);
    return 0;
}

int kx_text_encode(struct kx_text *t, const int32_t *ids, int n, int positions, float *states, float *pooled,
                   struct kn_err *err) {
    if (positions < 2 || positions > t->cfg.positions_max)
        return kn_err_set(err, KN_EINVAL, "%d positions, not 2 to %d", positions, t->cfg.positions_max);
    assert(!pooled == !t->projection);
    size_t count = (size_t)n * (size_t)positions;
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= t->cfg.vocab_size)
            return kn_err_set(err, KN_EINVAL, "token %d is beyond vocab_size %d", ids[i], t->cfg.vocab_size);
    /* what a text takes: its states and a layer's widest */
    size_t bytes = kx_value_bytes(t->ctx) * (size_t)positions *
                   (size_t)(5 * t->cfg.hidden_size + t->cfg.intermediate_size);
    int lanes = kx_ctx_lanes(t->ctx, n, bytes), planned = t->planned;
    int rc = make_room(t, n, positions, err);
    if (!rc && (planned != positions || !kx_lanes_ready(&t->lanes, t->ctx, lanes, n)))
        rc = kx_lanes_plan(&t->lanes, t->ctx, lanes, n, encode, t, err);
    if (rc) {
        t->room = t->planned = 0; /* nothing is planned */
        return rc;
    }
    rc = upload(t, ids, n, positions, err);
    if (!rc) rc = kx_lanes_run(&t->lanes, t->ctx, n, encode, t, err);
    if (rc) return rc;
    kx_download_values(t->ctx, states, t->states, count * (size_t)t->cfg.hidden_size);
    if (t->projection)
        kx_download_values(t->ctx, pooled, t->pooled, (size_t)n * (size_t)t->cfg.projection_dim);
    return kx_ctx_error(t->ctx, err);
}
