#include "tests/gpu/random_weights.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"

enum { TENSORS_MAX = 8192, HEADER_MAX = 4 << 20 };

/* The file while it is put together: the header's text, and what each tensor's values are like. */
struct bag {
    struct kn_buf header;
    struct tensor {
        size_t n;
        float middle, spread; /* uniform in middle ± spread */
    } tensors[TENSORS_MAX];
    int count;
    size_t values;
};

static void must(bool ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "random weights: %s\n", what);
    exit(1);
}

static void add(struct bag *b, const char *prefix, const char *name, const char *suffix, const int *shape,
                int ndim, float middle, float spread) {
    size_t n = 1;
    must(b->count < TENSORS_MAX, "too many tensors");
    must(!kn_buf_appendf(&b->header, "%s\"%s%s%s\":{\"dtype\":\"BF16\",\"shape\":[", b->count ? "," : "",
                         prefix, name, suffix),
         "no memory");
    for (int i = 0; i < ndim; i++) {
        must(!kn_buf_appendf(&b->header, "%s%d", i ? "," : "", shape[i]), "no memory");
        n *= (size_t)shape[i];
    }
    must(!kn_buf_appendf(&b->header, "],\"data_offsets\":[%zu,%zu]}", 2 * b->values, 2 * (b->values + n)),
         "no memory");
    b->tensors[b->count++] = (struct tensor){n, middle, spread};
    b->values += n;
}

/* A product keeps the size of its input: each output is a sum of fan_in values of variance 1 / fan_in. */
static float spread(int fan_in) {
    return sqrtf(3 / (float)fan_in);
}

static void norm(struct bag *b, const char *prefix, const char *name, int c) {
    add(b, prefix, name, ".weight", &c, 1, 1, 0.25f);
    add(b, prefix, name, ".bias", &c, 1, 0, 0.25f);
}
static void linear(struct bag *b, const char *prefix, const char *name, int in, int out, bool bias) {
    add(b, prefix, name, ".weight", (const int[]){out, in}, 2, 0, spread(in));
    if (bias) add(b, prefix, name, ".bias", &out, 1, 0, 0.1f);
}
static void conv(struct bag *b, const char *prefix, const char *name, int in, int out, int kernel) {
    add(b, prefix, name, ".weight", (const int[]){out, in, kernel, kernel}, 4, 0,
        spread(in * kernel * kernel));
    add(b, prefix, name, ".bias", &out, 1, 0, 0.1f);
}

#define NAME(name, ...)                                                                                      \
    char name[160];                                                                                          \
    must(snprintf(name, sizeof name, __VA_ARGS__) < (int)sizeof name, "a name is too long")

static uint64_t next(uint64_t *s) {
    *s ^= *s << 13;
    *s ^= *s >> 7;
    return *s ^= *s << 17;
}

/* Header and values as one file. */
static void finish(struct bag *b, uint64_t seed, struct random_weights *out) {
    struct kn_err err = {0};
    must(!kn_buf_append(&b->header, "}", 1), "no memory");
    while (b->header.len % 8) must(!kn_buf_append(&b->header, " ", 1), "no memory");
    size_t bytes = 8 + b->header.len + 2 * b->values;
    unsigned char *file = malloc(bytes);
    must(file, "no memory");
    uint64_t length = b->header.len, s = seed * 0x9e3779b97f4a7c15u + 1;
    for (int i = 0; i < 8; i++) file[i] = (unsigned char)(length >> 8 * i);
    memcpy(file + 8, b->header.data, b->header.len);
    uint16_t *v = (uint16_t *)(void *)(file + 8 + b->header.len);
    for (int i = 0; i < b->count; i++)
        for (size_t k = 0; k < b->tensors[i].n; k++) {
            float f =
                b->tensors[i].middle + b->tensors[i].spread * ((float)(next(&s) >> 40) / 8388608.0f - 1);
            uint32_t bits;
            memcpy(&bits, &f, sizeof bits);
            *v++ = (uint16_t)(bits >> 16);
        }
    *out = (struct random_weights){.bytes = file};
    int rc = kx_weights_parse(file, bytes, "random", &out->w, &err);
    must(!rc, err.text);
    kn_buf_fini(&b->header);
    free(b);
}

static struct bag *begin(void) {
    struct bag *b = calloc(1, sizeof *b);
    must(b, "no memory");
    kn_buf_init(&b->header, HEADER_MAX);
    must(!kn_buf_append(&b->header, "{", 1), "no memory");
    return b;
}

void random_weights_fini(struct random_weights *r) {
    kx_weights_close(r->w);
    free(r->bytes);
}

void random_text(const struct kx_text_config *cfg, uint64_t seed, struct random_weights *out) {
    struct bag *b = begin();
    int c = cfg->hidden_size;
    add(b, "text_model.embeddings.", "token_embedding", ".weight", (const int[]){cfg->vocab_size, c}, 2, 0,
        1);
    add(b, "text_model.embeddings.", "position_embedding", ".weight", (const int[]){cfg->positions_max, c}, 2,
        0, 0.5f);
    for (int i = 0; i < cfg->layers; i++) {
        NAME(p, "text_model.encoder.layers.%d.", i);
        norm(b, p, "layer_norm1", c);
        linear(b, p, "self_attn.q_proj", c, c, true);
        linear(b, p, "self_attn.k_proj", c, c, true);
        linear(b, p, "self_attn.v_proj", c, c, true);
        linear(b, p, "self_attn.out_proj", c, c, true);
        norm(b, p, "layer_norm2", c);
        linear(b, p, "mlp.fc1", c, cfg->intermediate_size, true);
        linear(b, p, "mlp.fc2", cfg->intermediate_size, c, true);
    }
    norm(b, "text_model.", "final_layer_norm", c);
    if (cfg->projected) linear(b, "", "text_projection", c, cfg->projection_dim, false);
    finish(b, seed, out);
}

/* time: the width of the time embedding, 0 for none. */
static void resnet(struct bag *b, const char *p, int in, int out, int time) {
    norm(b, p, "norm1", in);
    conv(b, p, "conv1", in, out, 3);
    if (time) linear(b, p, "time_emb_proj", time, out, true);
    norm(b, p, "norm2", out);
    conv(b, p, "conv2", out, out, 3);
    if (in != out) conv(b, p, "conv_shortcut", in, out, 1);
}

static void transformer(struct bag *b, const char *p, int c, int depth, int text, bool matrix) {
    norm(b, p, "norm", c);
    if (matrix)
        linear(b, p, "proj_in", c, c, true);
    else
        conv(b, p, "proj_in", c, c, 1);
    for (int i = 0; i < depth; i++) {
        NAME(q, "%stransformer_blocks.%d.", p, i);
        norm(b, q, "norm1", c);
        linear(b, q, "attn1.to_q", c, c, false);
        linear(b, q, "attn1.to_k", c, c, false);
        linear(b, q, "attn1.to_v", c, c, false);
        linear(b, q, "attn1.to_out.0", c, c, true);
        norm(b, q, "norm2", c);
        linear(b, q, "attn2.to_q", c, c, false);
        linear(b, q, "attn2.to_k", text, c, false);
        linear(b, q, "attn2.to_v", text, c, false);
        linear(b, q, "attn2.to_out.0", c, c, true);
        norm(b, q, "norm3", c);
        linear(b, q, "ff.net.0.proj", c, 8 * c, true);
        linear(b, q, "ff.net.2", 4 * c, c, true);
    }
    if (matrix)
        linear(b, p, "proj_out", c, c, true);
    else
        conv(b, p, "proj_out", c, c, 1);
}

static void level(struct bag *b, const struct kx_unet_config *cfg, const char *p, int i, const int *ins,
                  int count, int transformers) {
    for (int k = 0; k < count; k++) {
        NAME(r, "%sresnets.%d.", p, k);
        resnet(b, r, ins[k], cfg->channels[i], 4 * cfg->channels[0]);
        if (k >= transformers) continue;
        NAME(t, "%sattentions.%d.", p, k);
        transformer(b, t, cfg->channels[i], cfg->transformer_depth[i], cfg->cross_attention_dim,
                    cfg->linear_projection);
    }
}

void random_unet(const struct kx_unet_config *cfg, uint64_t seed, struct random_weights *out) {
    struct bag *b = begin();
    int c = cfg->channels[0], deepest = cfg->levels - 1, ins[20];
    conv(b, "", "conv_in", cfg->in_channels, c, 3);
    linear(b, "time_embedding.", "linear_1", c, 4 * c, true);
    linear(b, "time_embedding.", "linear_2", 4 * c, 4 * c, true);
    if (cfg->pooled_width) {
        linear(b, "add_embedding.", "linear_1", cfg->pooled_width + KX_TIME_IDS * cfg->addition_time_width,
               4 * c, true);
        linear(b, "add_embedding.", "linear_2", 4 * c, 4 * c, true);
    }
    for (int i = 0; i < cfg->levels; i++) {
        NAME(p, "down_blocks.%d.", i);
        for (int k = 0; k < cfg->layers[i]; k++) ins[k] = cfg->channels[k || !i ? i : i - 1];
        level(b, cfg, p, i, ins, cfg->layers[i], cfg->down[i] == KX_BLOCK_CROSS_ATTN ? cfg->layers[i] : 0);
        if (i < deepest) conv(b, p, "downsamplers.0.conv", cfg->channels[i], cfg->channels[i], 3);
    }
    ins[0] = ins[1] = cfg->channels[deepest];
    level(b, cfg, "mid_block.", deepest, ins, 2, 1);
    for (int k = 0; k < cfg->levels; k++) {
        NAME(p, "up_blocks.%d.", k);
        int i = deepest - k, count = cfg->layers[i] + 1;
        for (int q = 0; q < count; q++)
            ins[q] = (q ? cfg->channels[i] : cfg->channels[k ? i + 1 : i]) +
                     (q + 1 < count ? cfg->channels[i] : cfg->channels[i ? i - 1 : 0]);
        level(b, cfg, p, i, ins, count, cfg->up[k] == KX_BLOCK_CROSS_ATTN ? count : 0);
        if (i) conv(b, p, "upsamplers.0.conv", cfg->channels[i], cfg->channels[i], 3);
    }
    norm(b, "", "conv_norm_out", c);
    conv(b, "", "conv_out", c, cfg->out_channels, 3);
    finish(b, seed, out);
}

void random_vae(const struct kx_vae_config *cfg, uint64_t seed, struct random_weights *out) {
    struct bag *b = begin();
    int z = cfg->latent_channels, c = cfg->channels[cfg->levels - 1];
    if (cfg->post_quant_conv) conv(b, "", "post_quant_conv", z, z, 1);
    conv(b, "decoder.", "conv_in", z, c, 3);
    resnet(b, "decoder.mid_block.resnets.0.", c, c, 0);
    if (cfg->mid_attention) {
        norm(b, "decoder.mid_block.attentions.0.", "group_norm", c);
        linear(b, "decoder.mid_block.attentions.0.", "to_q", c, c, true);
        linear(b, "decoder.mid_block.attentions.0.", "to_k", c, c, true);
        linear(b, "decoder.mid_block.attentions.0.", "to_v", c, c, true);
        linear(b, "decoder.mid_block.attentions.0.", "to_out.0", c, c, true);
    }
    resnet(b, "decoder.mid_block.resnets.1.", c, c, 0);
    for (int i = 0, in = c; i < cfg->levels; i++) {
        int width = cfg->channels[cfg->levels - 1 - i];
        for (int k = 0; k <= cfg->layers_per_block; k++, in = width) {
            NAME(p, "decoder.up_blocks.%d.resnets.%d.", i, k);
            resnet(b, p, in, width, 0);
        }
        NAME(p, "decoder.up_blocks.%d.upsamplers.0.", i);
        if (i + 1 < cfg->levels) conv(b, p, "conv", width, width, 3);
    }
    norm(b, "decoder.", "conv_norm_out", cfg->channels[0]);
    conv(b, "decoder.", "conv_out", cfg->channels[0], cfg->out_channels, 3);
    finish(b, seed, out);
}
