/* The networks of a Stable Diffusion pipeline, built on kernels/ops.h: CLIP text encoder, UNet2DCondition,
 * AutoencoderKL's decoder. Each is created from a parsed config and a bag of named weights, plans its memory
 * once a shape, and then runs without allocating. Engine-internal; tensors are NHWC (token sequences: n ×
 * length × width), in the context's memory and storage type where nothing else is said. Semantics:
 * huggingface/diffusers and huggingface/transformers at the versions that tests/golden pins. */
#ifndef KILN_KERNELS_MODELS_H
#define KILN_KERNELS_MODELS_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

#define KX_LEVELS_MAX 8
#define KX_TRANSFORMER_DEPTH_MAX 16

struct kx_ctx;     /* kernels/ops.h: a backend's stream, threads and workspace */
struct kx_weights; /* kernels/io/safetensors.h: named tensors of one component, mapped */

struct kx_text_config { /* text_encoder/config.json */
    int vocab_size, hidden_size, intermediate_size, layers, heads, positions_max;
    bool quick_gelu; /* hidden_act quick_gelu, else gelu */
    float layer_norm_eps;
    int eos_token_id; /* the pooled state is the state at the first such id; 2: at the largest id */
    int projection_dim;
    /* set by the pipeline, not read from the file */
    bool projected;   /* CLIPTextModelWithProjection: a pooled state of projection_dim */
    bool penultimate; /* the states are those before the last layer, without the final norm */
};

enum kx_block_type { KX_BLOCK_PLAIN, KX_BLOCK_CROSS_ATTN };

struct kx_unet_config { /* unet/config.json */
    int in_channels, out_channels, levels;
    int channels[KX_LEVELS_MAX];
    enum kx_block_type down[KX_LEVELS_MAX],
        up[KX_LEVELS_MAX];     /* up[0] is the lowest resolution, as in the file */
    int layers[KX_LEVELS_MAX]; /* layers_per_block */
    int heads[KX_LEVELS_MAX];  /* attention_head_dim / num_attention_heads: number of heads a level */
    int transformer_depth[KX_LEVELS_MAX]; /* transformer_layers_per_block */
    int cross_attention_dim;
    int norm_groups;
    float norm_eps;
    bool linear_projection;    /* use_linear_projection */
    bool only_cross_attention; /* not supported when true */
    bool flip_sin_to_cos;
    float freq_shift;
    int sample_size;        /* native latent size, 0 unknown */
    bool small_size_is_old; /* written by a diffusers whose sizes below 64 were wrong */
    /* addition_embed_type text_time: a condition is added to the time embedding. It is made of a pooled text,
     * pooled_width wide, and of six numbers (KX_TIME_IDS), each as a sinusoidal embedding of
     * addition_time_width. 0, 0: nothing is added. */
    int pooled_width, addition_time_width;
};
#define KX_TIME_IDS 6 /* original height and width, top and left of the crop, target height and width */

struct kx_vae_config { /* vae/config.json, the decoder's part */
    int latent_channels, out_channels, levels;
    int channels[KX_LEVELS_MAX];
    int layers_per_block;
    int norm_groups;
    float scaling_factor, shift_factor;
    bool mid_attention;   /* mid_block_add_attention */
    bool post_quant_conv; /* use_post_quant_conv */
    bool force_upcast;    /* overflows f16 */
    int factor;           /* 2^(levels-1) */
};

struct kx_text;
struct kx_unet;
struct kx_vae;

/* Creates copy and re-lay what they need; weights may be closed after the create. A missing tensor, a wrong
 * shape or a tensor that nothing uses and that diffusers would use too is KN_EPARSE with its name. */
KN_MUST_USE int kx_text_create(struct kx_ctx *ctx, const struct kx_text_config *cfg,
                               const struct kx_weights *w, struct kx_text **out, struct kn_err *err);
void kx_text_destroy(struct kx_text *t);
/* The layers that its weights are in, by the weights' names (load.h). Borrowed until the network is
 * destroyed. */
struct kx_parts;
struct kx_parts *kx_text_parts(struct kx_text *t);
/* ids: n × positions, i32; states out: n × positions × hidden_size, after the final layer norm
 * (cfg.penultimate: before the last layer); pooled out: n × projection_dim with cfg.projected, else NULL. All
 * the host's. */
KN_MUST_USE int kx_text_encode(struct kx_text *t, const int32_t *ids, int n, int positions, float *states,
                               float *pooled, struct kn_err *err);

KN_MUST_USE int kx_unet_create(struct kx_ctx *ctx, const struct kx_unet_config *cfg,
                               const struct kx_weights *w, struct kx_unet **out, struct kn_err *err);
void kx_unet_destroy(struct kx_unet *u);
struct kx_parts *kx_unet_parts(struct kx_unet *u);
/* Drops its plans. Needed after kx_quantize, since a quantized layer wants another workspace. */
void kx_unet_forget(struct kx_unet *u);
/* Allocates what n images of h × w latents and texts of `positions` tokens need; buffers that are large
 * enough stay. KN_EOOM. */
KN_MUST_USE int kx_unet_plan(struct kx_unet *u, int n, int h, int w, int positions, struct kn_err *err);
/* The bytes of the context's memory that n images in one call would take beside the weights. */
KN_MUST_USE int kx_unet_bytes(struct kx_unet *u, int n, int h, int w, int positions, size_t *bytes,
                              struct kn_err *err);
/* The same from the configuration alone, in values: an image's activations, and a text's states, keys and
 * values. Rough, and rather too much than too little (tests/unit/engine_memory.c). */
size_t kx_unet_image_values(const struct kx_unet_config *cfg, int h, int w);
size_t kx_unet_text_values(const struct kx_unet_config *cfg, int positions);
/* Generation: changes when buffers of the network are reallocated. Recordings (kx_replay) of an earlier one
 * hold addresses that are gone, and are made again. */
unsigned kx_unet_generation(const struct kx_unet *u);
/* The conditions that are added to the time embedding, where cfg.pooled_width is not 0 (SDXL's
 * added_cond_kwargs): n pooled texts (n × pooled_width, text_embeds in diffusers) and their time_ids (n ×
 * KX_TIME_IDS), both the host's. Call it before kx_unet_set_times. */
KN_MUST_USE int kx_unet_set_added_cond(struct kx_unet *u, const float *pooled, const float *time_ids, int n,
                                       struct kn_err *err);
/* Computes the time_proj of all residual blocks for n timesteps (the host's; may be fractional), once for
 * all steps: row i belongs to timesteps[i]; with m added conditions row i · m + j belongs to timesteps[i]
 * and condition j. */
#define KX_UNET_TIMES_MAX 65536
KN_MUST_USE int kx_unet_set_times(struct kx_unet *u, const float *timesteps, int n, struct kn_err *err);
/* Cross-attention keys and values of n texts (n × positions × cross_attention_dim, the host's), once for all
 * steps. After plan. */
KN_MUST_USE int kx_unet_set_text(struct kx_unet *u, const float *states, int n, int positions,
                                 struct kn_err *err);
/* Predicts for n images. All in the context's memory: x and out are n × h × w × in_channels and
 * out_channels values; image i has row time_row[i] of kx_unet_set_times and text text_row[i] of
 * kx_unet_set_text. Call plan (with n), set_times and set_text before. */
KN_MUST_USE int kx_unet_forward(struct kx_unet *u, const void *x, const int32_t *time_row,
                                const int32_t *text_row, int n, void *out, struct kn_err *err);

KN_MUST_USE int kx_vae_create(struct kx_ctx *ctx, const struct kx_vae_config *cfg, const struct kx_weights *w,
                              struct kx_vae **out, struct kn_err *err);
void kx_vae_destroy(struct kx_vae *v);
/* How many of n images are decoded at the same time, on lanes of their own. */
int kx_vae_lanes(const struct kx_vae *v, int n, int h, int w);
/* The bytes of the context's memory that n images in one call would take beside the weights. */
KN_MUST_USE int kx_vae_bytes(const struct kx_vae *v, int n, int h, int w, size_t *bytes, struct kn_err *err);
/* An image's activations from the configuration alone, in values: rough, as kx_unet_image_values is. */
size_t kx_vae_image_values(const struct kx_vae_config *cfg, int h, int w);
/* Plans for n images, as the first kx_vae_decode of that shape would: libraries may take seconds for it. */
KN_MUST_USE int kx_vae_plan(struct kx_vae *v, int n, int h, int w, struct kn_err *err);
/* All in the context's memory: latents, f32: n × h × w × latent_channels, as the loop leaves them (divides by
 * scaling_factor, adds shift_factor itself). rgb: n × (h·factor) × (w·factor) × 3, f32 in [0, 1]: clamp(x/2 +
 * 0.5), or NULL; bytes: the same as 8-bit values, or NULL; finite: n, as kx_to_rgb has it. */
KN_MUST_USE int kx_vae_decode(struct kx_vae *v, const float *latents, int n, int h, int w, float *rgb,
                              uint8_t *bytes, int32_t *finite, struct kn_err *err);

#endif
