/* Computes what a model takes of a CPU's memory, from its folder alone, and how many images at once fit in what may be
 * used. The same account is told to people (kiln_model_describe), asked before a model is loaded, and kept to
 * while it renders, so that the three agree.
 *
 * Weights are held as f32 whatever the files hold. An image's activations grow with its pixels: the networks take
 * nothing that grows faster, since attention works in tiles. Images in work at a time are as many as there are
 * lanes (kernels/cpu/context.c): all threads on one image, or an image a thread. */
#include <string.h>

#include "base/machine.h"
#include "kernels/engine.h"
#include "kernels/io/safetensors.h"

#define MINIBATCH_CPU 4 /* or an image for each thread, where that is more: beyond it a CPU gains nothing */
#define MINIBATCH_MAX 64

/* The encoder's half of an autoencoder is not loaded. */
static bool is_loaded(const char *part, const struct kx_weight *w) {
    return strcmp(part, "vae") != 0 ||
           (strncmp(w->name, "encoder.", 8) != 0 && strncmp(w->name, "quant_conv.", 11) != 0);
}

static int add_weights(const char *dir, const char *part, const char *stem, uint64_t *bytes,
                       struct kn_err *err) {
    char path[KN_PATH_MAX];
    struct kx_weights *w;
    int rc = kn_fs_join(path, sizeof path, dir, part);
    if (rc) return kn_err_set(err, rc, "%s: path too long", dir);
    if ((rc = kx_weights_open(path, stem, &w, err))) return rc;
    for (size_t i = 0; i < kx_weights_count(w); i++) {
        const struct kx_weight *v = kx_weights_at(w, i);
        uint64_t values = 1;
        for (int k = 0; k < v->ndim; k++) values *= (uint64_t)v->shape[k];
        if (is_loaded(part, v)) *bytes += values * sizeof(float);
    }
    kx_weights_close(w);
    return 0;
}

/* The two texts of a picture with guidance, its latents and the sampler's history of them. */
static uint64_t kept_bytes(const struct kx_config *cfg, uint32_t width, uint32_t height) {
    uint64_t latents = (uint64_t)width * height / (uint64_t)(cfg->vae.factor * cfg->vae.factor) *
                       (uint64_t)cfg->unet.in_channels;
    return sizeof(float) *
           (2 * kx_unet_text_values(&cfg->unet, cfg->text.positions_max) + latents * KX_LATENT_COPIES);
}

static uint64_t image_bytes(const struct kx_config *cfg, uint32_t width, uint32_t height) {
    int w = (int)width / cfg->vae.factor, h = (int)height / cfg->vae.factor;
    return sizeof(float) * (kx_unet_image_values(&cfg->unet, h, w) + kx_vae_image_values(&cfg->vae, h, w)) +
           kept_bytes(cfg, width, height);
}

int kx_model_memory(const struct kx_config *cfg, const char *dir, uint32_t width, uint32_t height,
                    struct kiln_memory *out, struct kn_err *err) {
    *out = (struct kiln_memory){.image = image_bytes(cfg, width, height)};
    int rc = add_weights(dir, "text_encoder", "model", &out->weights, err);
    if (!rc && cfg->index.xl) rc = add_weights(dir, "text_encoder_2", "model", &out->weights, err);
    if (!rc) rc = add_weights(dir, "unet", "diffusion_pytorch_model", &out->weights, err);
    if (!rc) rc = add_weights(dir, "vae", "diffusion_pytorch_model", &out->weights, err);
    out->weights +=
        out->weights / 25; /* layers laid out anew, what loading leaves: 3.5 % with SD1.5, measured */
    return rc;
}

int kiln_model_memory(const char *dir, uint32_t width, uint32_t height, struct kiln_memory *out,
                      struct kn_err *err) {
    struct kx_config cfg;
    int rc = kx_config_read(dir, &cfg, err);
    return rc ? rc : kx_model_memory(&cfg, dir, width, height, out, err);
}

/* ---- what is kept to */

static uint64_t least(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static uint64_t left_of(uint64_t have, uint64_t taken) {
    return have > taken ? have - taken : 0;
}

void kx_engine_memory_init(struct kiln_engine *e) {
    struct kn_machine m;
    kn_machine_read("", &m);
    e->memory_max = e->options.memory_bytes_max ? e->options.memory_bytes_max
                    : m.memory_total            ? m.memory_free
                                                : UINT64_MAX;
    kx_engine_memory_taken(e, 0);
}

void kx_engine_memory_taken(struct kiln_engine *e, int64_t weights) {
    e->weights += (uint64_t)weights; /* less, for a negative number: unsigned sums wrap */
    if (!e->gpu) kx_cpu_ctx_room(e->unet, left_of(e->memory_max, e->weights + KN_PROGRAM_BYTES));
}

int kx_engine_memory_check(const struct kiln_engine *e, uint64_t weights, struct kn_err *err) {
    struct kn_machine m;
    char need[16], can[16];
    kn_machine_read("", &m);
    uint64_t have = left_of(e->memory_max, e->weights + KN_PROGRAM_BYTES);
    if (m.memory_total) have = least(have, m.memory_free);
    if (weights <= have) return 0;
    return kn_err_set(err, KN_EOOM, "its weights take %s of memory in f32, and %s can be had",
                      kn_bytes_text(weights, need), kn_bytes_text(have, can));
}

int kx_image_check(struct kiln_model *m, uint32_t width, uint32_t height, struct kn_err *err) {
    char need[16], can[16];
    uint64_t bytes = image_bytes(&m->cfg, width, height), room = kx_cpu_ctx_room_get(m->engine->unet);
    if (bytes <= room) return 0;
    return kn_err_set(err, KN_EOOM,
                      "size: a picture of %ux%u takes %s of memory beside the weights, and %s are left",
                      width, height, kn_bytes_text(bytes, need), kn_bytes_text(room, can));
}

int kx_minibatch_cpu(struct kiln_model *m, uint32_t width, uint32_t height) {
    const struct kx_config *cfg = &m->cfg;
    struct kx_ctx *ctx = m->engine->unet;
    int w = (int)width / cfg->vae.factor, h = (int)height / cfg->vae.factor, n = kx_ctx_threads(ctx);
    size_t unet = kx_unet_image_values(&cfg->unet, h, w) * sizeof(float),
           vae = kx_vae_image_values(&cfg->vae, h, w) * sizeof(float);
    uint64_t kept = kept_bytes(cfg, width, height), room = kx_cpu_ctx_room_get(ctx);
    if (n < MINIBATCH_CPU) n = MINIBATCH_CPU;
    if (n > MINIBATCH_MAX) n = MINIBATCH_MAX;
    for (; n > 1; n--) {
        uint64_t lanes =
            (uint64_t)kx_ctx_lanes(ctx, 2 * n, unet) * unet + (uint64_t)kx_ctx_lanes(ctx, n, vae) * vae;
        if (lanes + (uint64_t)n * kept <= room) break;
    }
    return n;
}
