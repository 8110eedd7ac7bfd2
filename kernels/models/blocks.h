/* The parts that several networks have: the residual block of UNet and autoencoder (diffusers'
 * ResnetBlock2D, "default" time embedding) and the UNet's Transformer2DModel. Engine-internal. */
#ifndef KILN_KERNELS_MODELS_BLOCKS_H
#define KILN_KERNELS_MODELS_BLOCKS_H

#include "kernels/models/load.h"
#include "kernels/models/models.h"

/* y = shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + time_proj))) */
struct kx_resnet {
    int in, out, groups;
    float eps;
    struct kx_norm norm1, norm2;
    struct kx_conv *conv1, *conv2, *shortcut; /* shortcut: NULL when in is out */
    struct kx_linear *time_emb_proj;          /* time embedding → time_proj; NULL without one */
    size_t time_proj_at; /* where its time_proj begins among those of a network's blocks: values a timestep */
};
/* time_width: 0 for none. */
void kx_resnet_load(struct kx_loader *l, struct kx_resnet *r, const char *prefix, int in, int out, int groups,
                    float eps, int time_width);
void kx_resnet_fini(struct kx_ctx *ctx, struct kx_resnet *r);
/* time_proj: out values an image, added to every pixel, or NULL. y: other memory than x's, or x itself when
 * in is out. When in is not out x is spent: its memory is worked in, unless `keep`. */
void kx_resnet_run(struct kx_ctx *ctx, const struct kx_resnet *r, struct kx_tensor *x, bool keep,
                   const struct kx_rows *time_proj, struct kx_tensor *y);

/* Self-attention, attention to the text, feed-forward: each x += f(norm(x)). */
struct kx_transformer_block {
    struct kx_norm norm1, norm2, norm3;
    struct kx_linear *qkv, *out1; /* self-attention; query, key and value are one product */
    struct kx_linear *q, *kv, *out2;
    struct kx_linear *ff1, *ff2; /* GEGLU */
    size_t kv_at; /* where its keys and values begin among those of a network's blocks: values a position */
};
struct kx_transformer {
    int channels, heads, groups, depth;
    struct kx_norm norm;
    struct kx_linear *proj_in, *proj_out;
    struct kx_transformer_block *blocks; /* owns, `depth` of them */
};
/* *kv counts the values of keys and values that one position of a text takes; this transformer's are added.
 */
void kx_transformer_load(struct kx_loader *l, struct kx_transformer *t, const char *prefix, int channels,
                         int heads, int groups, int depth, int text_width, size_t *kv);
void kx_transformer_fini(struct kx_ctx *ctx, struct kx_transformer *t);
/* Keys and values of texts, for all cross-attention blocks of a network. A block's lie together, text by
 * text: of each text positions × (keys, then values). */
struct kx_keys {
    void *v;
    int positions;        /* tokens a text */
    int room;             /* how many texts there is memory for */
    const int32_t *index; /* image i has text index[i]; in the context's memory */
};
/* Computes the keys and values of text->n texts (n × 1 × positions × width) and stores them as texts first,
 * first + 1, … of keys. */
void kx_transformer_text(struct kx_ctx *ctx, const struct kx_transformer *t, const struct kx_tensor *text,
                         const struct kx_keys *keys, int first);
/* Works in place on x. keys->index belongs to x's images. */
void kx_transformer_run(struct kx_ctx *ctx, const struct kx_transformer *t, struct kx_tensor *x,
                        const struct kx_keys *keys);

/* Self-attention of the rows of x (n × 1 × … × channels): out = softmax(q kᵀ / √dim) v, with q, k and v side
 * by side in qkv. */
void kx_self_attention(struct kx_ctx *ctx, const struct kx_tensor *qkv, int heads, bool causal,
                       struct kx_tensor *out);

#endif
