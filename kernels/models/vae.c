/* AutoencoderKL's decoder (diffusers): post_quant_conv, conv_in, the middle, the levels upwards, conv_out.
 *
 * At full size this is where the memory goes: 512 × 512 pixels of 256 channels are 256 MiB. The picture
 * therefore travels between two places, each as large as it must be, and is worked in where a block is done
 * with it.
 *
 * Shapes beside the calls are those of Stable Diffusion 1.5: n images of 64 × 64 latents, 512 × 512 pixels. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/models/blocks.h"
#include "kernels/models/lanes.h"

#define EPS 1e-6f /* diffusers' decoder, whatever the config */

struct vae_level {
    struct kx_resnet *resnets; /* layers_per_block + 1 */
    struct kx_conv *up;        /* NULL at the last */
};

struct kx_vae {
    struct kx_ctx *ctx; /* borrowed */
    struct kx_vae_config cfg;
    struct kx_conv *post_quant, *conv_in, *conv_out;
    struct kx_resnet mid[2];
    struct kx_norm attention_norm; /* with cfg.mid_attention */
    struct kx_linear *qkv, *attention_out;
    struct vae_level levels[KX_LEVELS_MAX]; /* [0] is the deepest */
    struct kx_norm norm_out;
    struct vae_plan {
        struct kx_lanes lanes;
        int h, w;
    } one, many; /* images one after another; on lanes */
};

/* Channels of the i-th level upwards. */
static int channels_of(const struct kx_vae_config *cfg, int i) {
    return cfg->channels[cfg->levels - 1 - i];
}

static void load_attention(struct kx_loader *l, struct kx_vae *v, int c) {
    /* the names of diffusers before 0.18, which published folders still have */
    static const char prefix[] = "decoder.mid_block.attentions.0.";
    bool old = kx_weights_find(l->weights, "decoder.mid_block.attentions.0.query.weight") ||
               kx_weights_find(l->weights, "decoder.mid_block.attentions.0.key.weight");
    const char *const names[] = {old ? "query" : "to_q", old ? "key" : "to_k", old ? "value" : "to_v"};
    kx_load_norm(l, prefix, "group_norm", c, &v->attention_norm);
    kx_load_linear(l, prefix, names, 3, c, c, true, KX_ACT_NONE, &v->qkv);
    kx_load_linear(l, prefix, (const char *[]){old ? "proj_attn" : "to_out.0"}, 1, c, c, true, KX_ACT_NONE,
                   &v->attention_out);
}

static void load_level(struct kx_loader *l, struct kx_vae *v, int i, int in) {
    const struct kx_vae_config *cfg = &v->cfg;
    struct vae_level *y = &v->levels[i];
    int c = channels_of(cfg, i), count = cfg->layers_per_block + 1;
    char name[KX_TENSOR_NAME_MAX / 2];
    y->resnets = kx_loader_alloc(l, (size_t)count, sizeof *y->resnets);
    for (int k = 0; k < count && y->resnets; k++) {
        snprintf(name, sizeof name, "decoder.up_blocks.%d.resnets.%d.", i, k);
        kx_resnet_load(l, &y->resnets[k], name, k ? c : in, c, cfg->norm_groups, EPS, 0);
    }
    if (i + 1 == cfg->levels) return;
    snprintf(name, sizeof name, "decoder.up_blocks.%d.upsamplers.0.", i);
    struct kx_conv_shape s = {.in = c, .out = c, .kernel = 3, .stride = 1, .upsample = true};
    kx_load_conv(l, name, "conv", &s, &y->up);
}

int kx_vae_create(struct kx_ctx *ctx, const struct kx_vae_config *cfg, const struct kx_weights *w,
                  struct kx_vae **out, struct kn_err *err) {
    *out = NULL;
    if (cfg->shift_factor != 0.0f)
        return kn_err_set(err, KN_EUNSUPPORTED, "shift_factor %g is not supported",
                          (double)cfg->shift_factor);
    struct kx_loader l;
    kx_loader_init(&l, ctx, w, err);
    int z = cfg->latent_channels, c = channels_of(cfg, 0);
    struct kx_vae *v = kx_loader_alloc(&l, 1, sizeof *v);
    if (!v) return kx_loader_finish(&l);
    v->ctx = ctx;
    v->cfg = *cfg;
    /* the division by scaling_factor is part of the first convolution */
    float factor = 1 / cfg->scaling_factor;
    if (cfg->post_quant_conv) {
        struct kx_conv_shape s = {.in = z, .out = z, .kernel = 1, .stride = 1};
        kx_load_conv_scaled(&l, "", "post_quant_conv", &s, factor, &v->post_quant);
        factor = 1;
    }
    struct kx_conv_shape s = {.in = z, .out = c, .kernel = 3, .stride = 1};
    kx_load_conv_scaled(&l, "decoder.", "conv_in", &s, factor, &v->conv_in);
    kx_resnet_load(&l, &v->mid[0], "decoder.mid_block.resnets.0.", c, c, cfg->norm_groups, EPS, 0);
    if (cfg->mid_attention) load_attention(&l, v, c);
    kx_resnet_load(&l, &v->mid[1], "decoder.mid_block.resnets.1.", c, c, cfg->norm_groups, EPS, 0);
    for (int i = 0; i < cfg->levels; i++) load_level(&l, v, i, channels_of(cfg, i ? i - 1 : 0));
    kx_load_norm(&l, "decoder.", "conv_norm_out", cfg->channels[0], &v->norm_out);
    s = (struct kx_conv_shape){.in = cfg->channels[0], .out = cfg->out_channels, .kernel = 3, .stride = 1};
    kx_load_conv(&l, "decoder.", "conv_out", &s, &v->conv_out);
    kx_loader_ignore(&l, (const char *[]){"encoder.", "quant_conv.", NULL});
    int rc = kx_loader_finish(&l);
    if (rc) {
        kx_vae_destroy(v);
        return rc;
    }
    *out = v;
    return 0;
}

void kx_vae_destroy(struct kx_vae *v) {
    if (!v) return;
    kx_conv_destroy(v->post_quant);
    kx_conv_destroy(v->conv_in);
    kx_conv_destroy(v->conv_out);
    for (int i = 0; i < 2; i++) kx_resnet_fini(v->ctx, &v->mid[i]);
    kx_norm_fini(v->ctx, &v->attention_norm);
    kx_linear_destroy(v->qkv);
    kx_linear_destroy(v->attention_out);
    for (int i = 0; i < v->cfg.levels; i++) {
        for (int k = 0; v->levels[i].resnets && k <= v->cfg.layers_per_block; k++)
            kx_resnet_fini(v->ctx, &v->levels[i].resnets[k]);
        free(v->levels[i].resnets);
        kx_conv_destroy(v->levels[i].up);
    }
    kx_norm_fini(v->ctx, &v->norm_out);
    kx_lanes_fini(&v->one.lanes, v->ctx);
    kx_lanes_fini(&v->many.lanes, v->ctx);
    free(v);
}

/* ---- decoding */

/* One call of kx_vae_decode. */
struct vae_decoding {
    const struct kx_vae *v;
    const float *latents;
    float *rgb;
    uint8_t *bytes;
    int32_t *finite;
    int h, w;
};

/* The picture on its way, in one of two places. */
struct vae_picture {
    void *place[2];
    int at;
    struct kx_tensor x;
};

static void note(size_t room[2], int at, int h, int w, int c) {
    size_t n = (size_t)h * (size_t)w * (size_t)c;
    if (n > room[at]) room[at] = n;
}

/* The values that each place needs, an image: the same way that decode() goes. */
static void rooms(const struct kx_vae_config *cfg, int h, int w, size_t room[2]) {
    int at = 0, c = channels_of(cfg, 0);
    room[0] = room[1] = 0;
    note(room, at, h, w, c);
    for (int i = 0; i < cfg->levels; i++) {
        if (channels_of(cfg, i) != c) note(room, at ^= 1, h, w, c = channels_of(cfg, i));
        if (i + 1 < cfg->levels) note(room, at ^= 1, h *= 2, w *= 2, c);
    }
}

/* The other place, for a picture of another shape. */
static struct kx_tensor other(const struct vae_picture *p, int h, int w, int c) {
    return (struct kx_tensor){p->place[p->at ^ 1], p->x.n, h, w, c};
}

static void moved(struct vae_picture *p, struct kx_tensor y) {
    p->at ^= 1;
    p->x = y;
}

static void attend(struct kx_ctx *ctx, const struct kx_vae *v, struct kx_tensor *x) {
    size_t mark = kx_mark(ctx);
    struct kx_tensor n = kx_tensor_take(ctx, x->n, x->h, x->w, x->c);
    struct kx_tensor qkv = kx_tensor_take(ctx, x->n, x->h, x->w, 3 * x->c);
    kx_group_norm(ctx, x, v->attention_norm.gamma, v->attention_norm.beta, v->cfg.norm_groups, EPS, false,
                  &n);
    kx_linear(ctx, v->qkv, &n, NULL, &qkv); /* n, h, w, 3 c */
    kx_self_attention(ctx, &qkv, 1, false, &n);
    kx_linear(ctx, v->attention_out, &n, x, x); /* n, h, w, c */
    kx_release(ctx, mark);
}

static void decode(void *arg, struct kx_ctx *ctx, int first, int count) {
    const struct vae_decoding *d = arg;
    const struct kx_vae *v = d->v;
    const struct kx_vae_config *cfg = &v->cfg;
    size_t mark = kx_mark(ctx), room[2], values = (size_t)d->h * (size_t)d->w * (size_t)cfg->latent_channels,
           n = (size_t)count;
    rooms(cfg, d->h, d->w, room);
    struct vae_picture p = {.place = {kx_take(ctx, n * room[0]), kx_take(ctx, n * room[1])}};

    size_t inner = kx_mark(ctx);
    struct kx_tensor z = kx_tensor_take(ctx, count, d->h, d->w, cfg->latent_channels);
    kx_from_f32(ctx, d->latents + (size_t)first * values, &z);
    if (v->post_quant) {
        struct kx_tensor y = kx_tensor_take(ctx, count, d->h, d->w, cfg->latent_channels);
        kx_conv(ctx, v->post_quant, &z, NULL, NULL, &y); /* n, 64, 64, 4 */
        z = y;
    }
    p.x = (struct kx_tensor){p.place[0], count, d->h, d->w, channels_of(cfg, 0)};
    kx_conv(ctx, v->conv_in, &z, NULL, NULL, &p.x); /* n, 64, 64, 512 */
    kx_release(ctx, inner);

    kx_resnet_run(ctx, &v->mid[0], &p.x, false, NULL, &p.x);
    if (cfg->mid_attention) attend(ctx, v, &p.x);
    kx_resnet_run(ctx, &v->mid[1], &p.x, false, NULL, &p.x); /* n, 64, 64, 512 */
    /* → n, 128, 128, 512 → n, 256, 256, 512 → n, 512, 512, 256 → n, 512, 512, 128 */
    for (int k = 0; k < cfg->levels; k++) {
        const struct vae_level *level = &v->levels[k];
        for (int q = 0; q <= cfg->layers_per_block; q++) {
            const struct kx_resnet *r = &level->resnets[q];
            struct kx_tensor y = r->shortcut ? other(&p, p.x.h, p.x.w, r->out) : p.x;
            kx_resnet_run(ctx, r, &p.x, false, NULL, &y);
            if (r->shortcut) moved(&p, y);
        }
        if (level->up) {
            struct kx_tensor y = other(&p, 2 * p.x.h, 2 * p.x.w, p.x.c);
            kx_conv(ctx, level->up, &p.x, NULL, NULL, &y);
            moved(&p, y);
        }
    }
    kx_group_norm(ctx, &p.x, v->norm_out.gamma, v->norm_out.beta, cfg->norm_groups, EPS, true, &p.x);
    struct kx_tensor rgb = kx_tensor_take(ctx, count, p.x.h, p.x.w, cfg->out_channels);
    kx_conv(ctx, v->conv_out, &p.x, NULL, NULL, &rgb); /* n, 512, 512, 3 */
    size_t before = (size_t)first * (kx_count(&rgb) / n);
    kx_to_rgb(ctx, &rgb, d->rgb ? d->rgb + before : NULL, d->bytes ? d->bytes + before : NULL,
              d->finite + first);
    kx_release(ctx, mark);
}

size_t kx_vae_image_values(const struct kx_vae_config *cfg, int h, int w) {
    size_t room[2];
    rooms(cfg, h, w, room);
    return 2 * (room[0] + room[1]); /* beside the two places a block has two more in work */
}

int kx_vae_lanes(const struct kx_vae *v, int n, int h, int w) {
    return kx_ctx_lanes(v->ctx, n, kx_vae_image_values(&v->cfg, h, w) * kx_value_bytes(v->ctx));
}

int kx_vae_bytes(const struct kx_vae *v, int n, int h, int w, size_t *bytes, struct kn_err *err) {
    int32_t unused[1];
    struct vae_decoding d = {.v = v, .h = h, .w = w, .finite = unused};
    return kx_lanes_count(v->ctx, n, decode, &d, bytes, err);
}

/* The plan for n images: *p. */
static int plan_for(struct kx_vae *v, struct vae_decoding *d, int n, struct vae_plan **out,
                    struct kn_err *err) {
    int lanes = kx_vae_lanes(v, n, d->h, d->w), rc = 0;
    struct vae_plan *p = *out = lanes > 1 ? &v->many : &v->one;
    if (p->h == d->h && p->w == d->w && kx_lanes_ready(&p->lanes, v->ctx, lanes, n)) return 0;
    p->h = p->w = 0;
    if ((rc = kx_lanes_plan(&p->lanes, v->ctx, lanes, n, decode, d, err))) return rc;
    p->h = d->h;
    p->w = d->w;
    return 0;
}

int kx_vae_plan(struct kx_vae *v, int n, int h, int w, struct kn_err *err) {
    static int32_t unused[1]; /* nothing is written while planning */
    struct vae_plan *p;
    return plan_for(v, &(struct vae_decoding){.v = v, .h = h, .w = w, .finite = unused}, n, &p, err);
}

int kx_vae_decode(struct kx_vae *v, const float *latents, int n, int h, int w, float *rgb, uint8_t *bytes,
                  int32_t *finite, struct kn_err *err) {
    struct vae_decoding d = {v, latents, rgb, bytes, finite, h, w};
    struct vae_plan *p;
    int rc = plan_for(v, &d, n, &p, err);
    return rc ? rc : kx_lanes_run(&p->lanes, v->ctx, n, decode, &d, err);
}
