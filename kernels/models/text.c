/* CLIP's text encoder (transformers' CLIPTextModel): embeddings, causal transformer layers, the final norm.
 * No pooling: Stable Diffusion reads the states of all positions. */
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
    struct layer *layers;
    struct kx_norm norm;
    struct kx_lanes lanes;
    int planned; /* positions */
    int room;    /* the next two are for so many texts of `planned` positions; own, the context's memory */
    int32_t *ids;
    void *states;
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

int kx_text_create(struct kx_ctx *ctx, const struct kx_text_config *cfg, const struct kx_weights *w,
                   struct kx_text **out, struct kn_err *err) {
    *out = NULL;
    struct kx_loader l;
    int rc = kx_loader_init(&l, ctx, w, err);
    struct kx_text *t = kx_loader_alloc(&l, 1, sizeof *t);
    if (!t) return kx_loader_finish(&l);
    t->ctx = ctx;
    t->cfg = *cfg;
    /* transformers 5 writes the names without this prefix */
    bool bare = kx_weights_find(w, "embeddings.token_embedding.weight") ||
                kx_weights_find(w, "final_layer_norm.weight");
    const char *prefix = bare ? "" : "text_model.";
    char name[KX_TENSOR_NAME_MAX / 2];
    snprintf(name, sizeof name, "%sembeddings.", prefix);
    kx_load_table(&l, name, "token_embedding", cfg->vocab_size, cfg->hidden_size, &t->tokens);
    kx_load_table(&l, name, "position_embedding", cfg->positions_max, cfg->hidden_size, &t->places);
    t->layers = kx_loader_alloc(&l, (size_t)cfg->layers, sizeof *t->layers);
    for (int i = 0; i < cfg->layers && t->layers; i++) {
        snprintf(name, sizeof name, "%sencoder.layers.%d.", prefix, i);
        load_layer(&l, cfg, name, &t->layers[i]);
    }
    kx_load_norm(&l, prefix, "final_layer_norm", cfg->hidden_size, &t->norm);
    /* a counter that old versions stored, and what belongs to CLIP's other half */
    kx_loader_ignore(&l, (const char *[]){"text_model.embeddings.position_ids", "embeddings.position_ids",
                                          "text_projection.", "logit_scale", "vision_model.",
                                          "visual_projection.", NULL});
    if ((rc = kx_loader_finish(&l))) {
        kx_text_destroy(t);
        return rc;
    }
    *out = t;
    return 0;
}

void kx_text_destroy(struct kx_text *t) {
    if (!t) return;
    for (int i = 0; t->layers && i < t->cfg.layers; i++) {
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
    kx_table_destroy(t->tokens);
    kx_table_destroy(t->places);
    kx_lanes_fini(&t->lanes, t->ctx);
    kx_free(t->ctx, t->ids);
    kx_free(t->ctx, t->states);
    free(t);
}

static void run_layer(struct kx_ctx *ctx, const struct kx_text_config *cfg, const struct layer *y,
                      struct kx_tensor *s, struct kx_tensor *n) {
    size_t mark = kx_mark(ctx);
    struct kx_tensor qkv = kx_tensor_take(ctx, s->n, 1, s->w, 3 * s->c);
    kx_layer_norm(ctx, s, y->norm1.gamma, y->norm1.beta, cfg->layer_norm_eps, n);
    kx_linear(ctx, y->qkv, n, NULL, &qkv);
    kx_self_attention(ctx, &qkv, cfg->heads, true, n);
    kx_linear(ctx, y->out, n, s, s);
    kx_release(ctx, mark);

    struct kx_tensor inner = kx_tensor_take(ctx, s->n, 1, s->w, cfg->intermediate_size);
    kx_layer_norm(ctx, s, y->norm2.gamma, y->norm2.beta, cfg->layer_norm_eps, n);
    kx_linear(ctx, y->fc1, n, NULL, &inner);
    kx_linear(ctx, y->fc2, &inner, s, s);
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
    kx_embed(ctx, t->tokens, t->places, t->ids + before, &s);
    for (int k = 0; k < t->cfg.layers; k++) run_layer(ctx, &t->cfg, &t->layers[k], &s, &n);
    kx_layer_norm(ctx, &s, t->norm.gamma, t->norm.beta, t->cfg.layer_norm_eps, &out);
    kx_release(ctx, mark);
}

static int make_room(struct kx_text *t, int n, int positions, struct kn_err *err) {
    if (n <= t->room && positions == t->planned) return 0;
    kx_free(t->ctx, t->ids);
    kx_free(t->ctx, t->states);
    size_t count = (size_t)n * (size_t)positions;
    t->ids = kx_alloc(t->ctx, count * sizeof *t->ids);
    t->states = kx_alloc(t->ctx, count * (size_t)t->cfg.hidden_size * kx_value_bytes(t->ctx));
    t->room = n;
    t->planned = positions;
    if (t->ids && t->states) return 0;
    t->room = 0;
    return kn_err_set(err, KN_EOOM, "out of memory for %d texts", n);
}

int kx_text_encode(struct kx_text *t, const int32_t *ids, int n, int positions, float *states,
                   struct kn_err *err) {
    if (positions < 2 || positions > t->cfg.positions_max)
        return kn_err_set(err, KN_EINVAL, "%d positions, not 2 to %d", positions, t->cfg.positions_max);
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
    kx_upload(t->ctx, t->ids, ids, count * sizeof *ids);
    rc = kx_lanes_run(&t->lanes, t->ctx, n, encode, t, err);
    if (rc) return rc;
    kx_download_values(t->ctx, states, t->states, count * (size_t)t->cfg.hidden_size);
    return kx_ctx_error(t->ctx, err);
}
