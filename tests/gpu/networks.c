/* Text encoder, UNet and autoencoder on a CUDA context against the CPU's: small configurations with drawn
 * weights that have each part of SD1, SD2 and SDXL, the shipped model, and on a device the shapes of SD1.5,
 * SD2.1 and SDXL; then bit by bit against themselves: an image alone and in a batch, in another order.
 *
 * Bounds are NMSE of one image (tests/gpu/parity.h). A network rounds to the storage type some hundred times
 * in a row: f16 3e-5 and bf16 2e-3, a picture's values (0 to 1) f16 1e-5 and bf16 1e-4. */
#include <stdio.h>

#include "kernels/io/config.h"
#include "tests/gpu/parity.h"
#include "tests/gpu/random_weights.h"

enum { IMAGES = 3, TEXTS = 2, TIMES = 2 };

static struct kx_ctx *cpu, *cuda[2];

static void contexts(void) {
    if (cpu) return;
    if (!kx_cuda_device_count()) SKIP("no CUDA device");
    MUST(kx_cpu_ctx_create(0, &cpu, MUST_ERR));
    for (int type = KX_STORE_F16; type <= KX_STORE_BF16; type++) {
        struct kx_cuda_options o = {.type = (enum kx_store)type};
        MUST(kx_cuda_ctx_create(&o, &cuda[type], MUST_ERR));
    }
}

static const char *type_name(int type) {
    return type == KX_STORE_F16 ? "f16" : "bf16";
}

/* Each image's distance; all of them below the bound. */
static void compare(const char *what, int type, const float *got, const float *want, int n, size_t per_image,
                    double bound) {
    double worst = 0;
    for (int i = 0; i < n; i++) {
        double e = nmse(got + (size_t)i * per_image, want + (size_t)i * per_image, per_image);
        if (e > worst) worst = e;
    }
    printf("%-28s %-4s NMSE %.2g\n", what, type_name(type), worst);
    CHECK_MSG(worst <= bound, "%s in %s: NMSE %g, at most %g", what, type_name(type), worst, bound);
}

static float *numbers(size_t n) {
    return must(malloc(n * sizeof(float)));
}

/* ---- the text encoder */

static void encode(struct kx_ctx *ctx, const struct kx_text_config *cfg, const struct kx_weights *w,
                   const int32_t *ids, int n, int positions, float *states, float *pooled) {
    struct kx_text *t;
    MUST(kx_text_create(ctx, cfg, w, &t, MUST_ERR));
    MUST(kx_text_encode(t, ids, n, positions, states, cfg->projected ? pooled : NULL, MUST_ERR));
    kx_text_destroy(t);
}

static void check_text(const char *name, const struct kx_text_config *cfg, const struct kx_weights *w,
                       int positions) {
    struct draw d = {.s = 7};
    size_t each = (size_t)positions * (size_t)cfg->hidden_size,
           wide = (size_t)(cfg->projected ? cfg->projection_dim : 1);
    int32_t *ids = draw_indices(&d, IMAGES * (size_t)positions, 0, cfg->vocab_size - 1);
    float *want_states = numbers(IMAGES * each), *got = numbers(IMAGES * each), *alone = numbers(each),
          *want_pooled = numbers(IMAGES * wide), *pooled = numbers(IMAGES * wide),
          *pooled_alone = numbers(wide);
    char what[64];
    encode(cpu, cfg, w, ids, IMAGES, positions, want_states, want_pooled);
    for (int type = KX_STORE_F16; type <= KX_STORE_BF16; type++) {
        encode(cuda[type], cfg, w, ids, IMAGES, positions, got, pooled);
        snprintf(what, sizeof what, "%s text", name);
        compare(what, type, got, want_states, IMAGES, each, type == KX_STORE_F16 ? 3e-5 : 2e-3);
        snprintf(what, sizeof what, "%s text, pooled", name);
        if (cfg->projected)
            compare(what, type, pooled, want_pooled, IMAGES, wide, type == KX_STORE_F16 ? 3e-5 : 2e-3);
        for (int i = 0; i < IMAGES; i++) {
            encode(cuda[type], cfg, w, ids + i * positions, 1, positions, alone, pooled_alone);
            CHECK(!memcmp(alone, got + (size_t)i * each, each * sizeof *got));
            if (cfg->projected) CHECK(!memcmp(pooled_alone, pooled + (size_t)i * wide, wide * sizeof *got));
        }
    }
    free(ids), free(want_states), free(got), free(alone), free(want_pooled), free(pooled), free(pooled_alone);
}

/* ---- the UNet */

struct unet_job {
    const struct kx_unet_config *cfg;
    const struct kx_weights *w;
    int h, w_, positions;
    float *x, *states, *pooled, *sizes; /* of IMAGES images, TEXTS texts and additions */
    float times[TIMES];
    int32_t time_row[IMAGES], text_row[IMAGES];
};

static size_t unet_values(const struct unet_job *j, int channels) {
    return (size_t)j->h * (size_t)j->w_ * (size_t)channels;
}

static void *up(struct kx_ctx *ctx, const void *v, size_t bytes) {
    void *p = kx_alloc(ctx, bytes);
    CHECK(p);
    kx_upload(ctx, p, v, bytes);
    return p;
}

/* The images order[0 … n) of the job, `rounds` times over one recording; out: n images of f32. */
static void predict(struct kx_ctx *ctx, struct kx_unet *u, const struct unet_job *j, const int *order, int n,
                    float *out) {
    size_t in = unet_values(j, j->cfg->in_channels), values = unet_values(j, j->cfg->out_channels);
    int32_t time_row[IMAGES], text_row[IMAGES];
    float *x = numbers((size_t)n * in);
    for (int i = 0; i < n; i++) {
        memcpy(x + (size_t)i * in, j->x + (size_t)order[i] * in, in * sizeof *x);
        time_row[i] = j->time_row[order[i]];
        text_row[i] = j->text_row[order[i]];
    }
    MUST(kx_unet_plan(u, n, j->h, j->w_, j->positions, MUST_ERR));
    if (j->cfg->pooled_width) MUST(kx_unet_set_added_cond(u, j->pooled, j->sizes, TEXTS, MUST_ERR));
    MUST(kx_unet_set_times(u, j->times, TIMES, MUST_ERR));
    MUST(kx_unet_set_text(u, j->states, TEXTS, j->positions, MUST_ERR));
    void *device_x = kx_alloc(ctx, (size_t)n * in * kx_value_bytes(ctx)),
         *y = kx_alloc(ctx, (size_t)n * values * kx_value_bytes(ctx));
    int32_t *times = up(ctx, time_row, sizeof time_row), *texts = up(ctx, text_row, sizeof text_row);
    CHECK(device_x && y);
    kx_upload_values(ctx, device_x, x, (size_t)n * in);
    MUST(kx_unet_forward(u, device_x, times, texts, n, y, MUST_ERR));
    kx_download_values(ctx, out, y, (size_t)n * values);
    MUST(kx_sync(ctx, MUST_ERR));
    kx_free(ctx, device_x);
    kx_free(ctx, y);
    kx_free(ctx, times);
    kx_free(ctx, texts);
    free(x);
}

static void check_unet(const char *name, const struct kx_unet_config *cfg, const struct kx_weights *w, int h,
                       int width, int positions) {
    struct draw d = {.s = 11, .type = KX_STORE_BF16};
    struct unet_job j = {
        .cfg = cfg, .w = w, .h = h, .w_ = width, .positions = positions, .times = {981, 17.5f}};
    size_t values = unet_values(&j, cfg->out_channels);
    int rows = cfg->pooled_width ? TIMES * TEXTS : TIMES;
    j.x = draw_values(&d, IMAGES * unet_values(&j, cfg->in_channels), 1.7f);
    j.states = draw_values(&d, TEXTS * (size_t)positions * (size_t)cfg->cross_attention_dim, 1.7f);
    j.pooled = draw_values(&d, TEXTS * (size_t)cfg->pooled_width, 1.7f);
    j.sizes = draw_numbers(&d, TEXTS * KX_TIME_IDS, 512);
    for (int i = 0; i < TEXTS * KX_TIME_IDS; i++) j.sizes[i] = floorf(512 + j.sizes[i]);
    for (int i = 0; i < IMAGES; i++) {
        j.time_row[i] = (i + 1) % rows;
        j.text_row[i] = i % TEXTS;
    }
    static const int orders[][IMAGES] = {{0, 1, 2}, {2, 0, 1}, {1, 2, 0}};
    float *want_out = numbers(IMAGES * values), *got = numbers(IMAGES * values),
          *other = numbers(IMAGES * values);
    char what[64];
    snprintf(what, sizeof what, "%s UNet", name);
    struct kx_unet *u;
    MUST(kx_unet_create(cpu, cfg, w, &u, MUST_ERR));
    predict(cpu, u, &j, orders[0], IMAGES, want_out);
    kx_unet_destroy(u);
    for (int type = KX_STORE_F16; type <= KX_STORE_BF16; type++) {
        MUST(kx_unet_create(cuda[type], cfg, w, &u, MUST_ERR));
        predict(cuda[type], u, &j, orders[0], IMAGES, got);
        compare(what, type, got, want_out, IMAGES, values, type == KX_STORE_F16 ? 3e-5 : 2e-3);
        for (int k = 1; k < 3; k++) {
            predict(cuda[type], u, &j, orders[k], k == 1 ? IMAGES : 2, other);
            for (int i = 0; i < (k == 1 ? IMAGES : 2); i++)
                CHECK(!memcmp(other + (size_t)i * values, got + (size_t)orders[k][i] * values,
                              values * sizeof *got));
        }
        for (int i = 0; i < IMAGES; i++) {
            predict(cuda[type], u, &j, &i, 1, other);
            CHECK(!memcmp(other, got + (size_t)i * values, values * sizeof *got));
        }
        kx_unet_destroy(u);
    }
    free(j.x), free(j.states), free(j.pooled), free(j.sizes), free(want_out), free(got), free(other);
}

/* ---- the autoencoder's decoder */

static void decode(struct kx_ctx *ctx, const struct kx_vae_config *cfg, const struct kx_weights *w,
                   const float *latents, int n, int h, int width, float *rgb, uint8_t *bytes) {
    size_t in = (size_t)n * (size_t)h * (size_t)width * (size_t)cfg->latent_channels,
           out = (size_t)n * 3 * (size_t)(h * cfg->factor) * (size_t)(width * cfg->factor);
    struct kx_vae *v;
    MUST(kx_vae_create(ctx, cfg, w, &v, MUST_ERR));
    float *x = up(ctx, latents, in * sizeof *latents), *y = kx_alloc(ctx, out * sizeof *y);
    uint8_t *b = kx_alloc(ctx, out);
    int32_t *finite = kx_alloc(ctx, (size_t)n * sizeof *finite), flags[IMAGES] = {0};
    CHECK(y && b && finite);
    MUST(kx_vae_decode(v, x, n, h, width, y, b, finite, MUST_ERR));
    kx_download(ctx, rgb, y, out * sizeof *rgb);
    kx_download(ctx, bytes, b, out);
    kx_download(ctx, flags, finite, (size_t)n * sizeof *flags);
    MUST(kx_sync(ctx, MUST_ERR));
    for (int i = 0; i < n; i++) CHECK_INT(flags[i], 1);
    kx_free(ctx, x);
    kx_free(ctx, y);
    kx_free(ctx, b);
    kx_free(ctx, finite);
    kx_vae_destroy(v);
}

static void check_vae(const char *name, const struct kx_vae_config *cfg, const struct kx_weights *w, int h,
                      int width, bool f16) {
    struct draw d = {.s = 13, .type = KX_STORE_BF16};
    size_t in = (size_t)h * (size_t)width * (size_t)cfg->latent_channels,
           out = 3 * (size_t)(h * cfg->factor) * (size_t)(width * cfg->factor);
    float *x = draw_values(&d, IMAGES * in, 1.7f * cfg->scaling_factor), *want_rgb = numbers(IMAGES * out),
          *rgb = numbers(IMAGES * out), *alone = numbers(out);
    uint8_t *want_bytes = must(malloc(IMAGES * out)), *bytes = must(malloc(IMAGES * out)),
            *alone_bytes = must(malloc(out));
    char what[64];
    snprintf(what, sizeof what, "%s VAE", name);
    decode(cpu, cfg, w, x, IMAGES, h, width, want_rgb, want_bytes);
    for (int type = f16 ? KX_STORE_F16 : KX_STORE_BF16; type <= KX_STORE_BF16; type++) {
        decode(cuda[type], cfg, w, x, IMAGES, h, width, rgb, bytes);
        compare(what, type, rgb, want_rgb, IMAGES, out, type == KX_STORE_F16 ? 1e-5 : 1e-4);
        for (size_t i = 0; i < IMAGES * out; i++) CHECK_INT(bytes[i], (int)rintf(255 * rgb[i]));
        for (int i = 0; i < IMAGES; i++) {
            decode(cuda[type], cfg, w, x + (size_t)i * in, 1, h, width, alone, alone_bytes);
            CHECK(!memcmp(alone, rgb + (size_t)i * out, out * sizeof *rgb));
            CHECK(!memcmp(alone_bytes, bytes + (size_t)i * out, out));
        }
    }
    free(x), free(want_rgb), free(rgb), free(alone), free(want_bytes), free(bytes), free(alone_bytes);
}

/* ---- small configurations with drawn weights */

TEST(text_encoders_agree_with_the_cpu) {
    static const struct kx_text_config configs[] = {{.vocab_size = 99,
                                                     .hidden_size = 40,
                                                     .intermediate_size = 80,
                                                     .layers = 2,
                                                     .heads = 5,
                                                     .positions_max = 13,
                                                     .quick_gelu = true,
                                                     .layer_norm_eps = 1e-5f,
                                                     .eos_token_id = 2},
                                                    {.vocab_size = 50,
                                                     .hidden_size = 32,
                                                     .intermediate_size = 72,
                                                     .layers = 3,
                                                     .heads = 4,
                                                     .positions_max = 9,
                                                     .layer_norm_eps = 1e-5f,
                                                     .eos_token_id = 2,
                                                     .projection_dim = 24,
                                                     .projected = true,
                                                     .penultimate = true}};
    contexts();
    for (int i = 0; i < 2; i++) {
        struct random_weights r;
        random_text(&configs[i], (uint64_t)i + 1, &r);
        check_text(i ? "projected" : "plain", &configs[i], r.w, configs[i].positions_max);
        random_weights_fini(&r);
    }
}

TEST(unets_agree_with_the_cpu) {
    static const struct kx_unet_config configs[] = {
        /* as SD1: 1×1 convolutions around the transformers; head sizes 8 and 12 */
        {.in_channels = 4,
         .out_channels = 4,
         .levels = 2,
         .channels = {16, 24},
         .down = {KX_BLOCK_CROSS_ATTN, KX_BLOCK_PLAIN},
         .up = {KX_BLOCK_PLAIN, KX_BLOCK_CROSS_ATTN},
         .layers = {1, 1},
         .heads = {2, 2},
         .transformer_depth = {1, 1},
         .cross_attention_dim = 16,
         .norm_groups = 4,
         .norm_eps = 1e-5f,
         .flip_sin_to_cos = true},
        /* as SDXL: matrices, several blocks, additions */
        {.in_channels = 4,
         .out_channels = 4,
         .levels = 2,
         .channels = {16, 32},
         .down = {KX_BLOCK_PLAIN, KX_BLOCK_CROSS_ATTN},
         .up = {KX_BLOCK_CROSS_ATTN, KX_BLOCK_PLAIN},
         .layers = {1, 1},
         .heads = {2, 4},
         .transformer_depth = {1, 2},
         .cross_attention_dim = 24,
         .norm_groups = 8,
         .norm_eps = 1e-5f,
         .linear_projection = true,
         .flip_sin_to_cos = true,
         .pooled_width = 10,
         .addition_time_width = 8}};
    contexts();
    for (int i = 0; i < 2; i++) {
        struct random_weights r;
        random_unet(&configs[i], (uint64_t)i + 3, &r);
        check_unet(i ? "small, as SDXL," : "small, as SD1,", &configs[i], r.w, i ? 4 : 6, i ? 6 : 4, 5);
        random_weights_fini(&r);
    }
}

TEST(autoencoders_agree_with_the_cpu) {
    static const struct kx_vae_config cfg = {.latent_channels = 4,
                                             .out_channels = 3,
                                             .levels = 2,
                                             .channels = {8, 16},
                                             .layers_per_block = 1,
                                             .norm_groups = 4,
                                             .scaling_factor = 0.18215f,
                                             .mid_attention = true,
                                             .post_quant_conv = true,
                                             .factor = 2};
    struct random_weights r;
    contexts();
    random_vae(&cfg, 5, &r);
    check_vae("small", &cfg, r.w, 5, 7, true);
    random_weights_fini(&r);
}

/* ---- the model that ships; on the shim, on small pictures */

TEST(the_shipped_model_agrees_with_the_cpu) {
    static struct kx_config cfg;
    struct kx_weights *w;
    contexts();
    MUST(kx_config_read(KILN_MODEL_DIR, &cfg, MUST_ERR));
#ifdef KX_SHIM
    int positions = 5, side = 8, small = 3;
#else
    int positions = cfg.text.positions_max, side = 32, small = 32;
#endif
    MUST(kx_weights_open(KILN_MODEL_DIR "/text_encoder", "model", &w, MUST_ERR));
    check_text("tiny", &cfg.text, w, positions);
    kx_weights_close(w);
    MUST(kx_weights_open(KILN_MODEL_DIR "/unet", "diffusion_pytorch_model", &w, MUST_ERR));
    check_unet("tiny", &cfg.unet, w, side, side, positions);
    kx_weights_close(w);
    MUST(kx_weights_open(KILN_MODEL_DIR "/vae", "diffusion_pytorch_model", &w, MUST_ERR));
    check_vae("tiny", &cfg.vae, w, small, small, true);
    kx_weights_close(w);
}

#ifndef KX_SHIM

/* ---- the shapes that people use */

static void check_model(const char *name, const struct kx_text_config *text,
                        const struct kx_unet_config *unet, int side, bool f16_vae) {
    static const struct kx_vae_config vae = {.latent_channels = 4,
                                             .out_channels = 3,
                                             .levels = 4,
                                             .channels = {128, 256, 512, 512},
                                             .layers_per_block = 2,
                                             .norm_groups = 32,
                                             .scaling_factor = 0.18215f,
                                             .mid_attention = true,
                                             .post_quant_conv = true,
                                             .factor = 8};
    struct random_weights r;
    random_text(text, 21, &r);
    check_text(name, text, r.w, 77);
    random_weights_fini(&r);
    random_unet(unet, 22, &r);
    check_unet(name, unet, r.w, side, side, 77);
    random_weights_fini(&r);
    random_vae(&vae, 23, &r);
    check_vae(name, &vae, r.w, side, side, f16_vae);
    random_weights_fini(&r);
}

TEST(sd15_agrees_with_the_cpu) {
    static const struct kx_text_config text = {.vocab_size = 49408,
                                               .hidden_size = 768,
                                               .intermediate_size = 3072,
                                               .layers = 12,
                                               .heads = 12,
                                               .positions_max = 77,
                                               .quick_gelu = true,
                                               .layer_norm_eps = 1e-5f,
                                               .eos_token_id = 2};
    static const struct kx_unet_config unet = {
        .in_channels = 4,
        .out_channels = 4,
        .levels = 4,
        .channels = {320, 640, 1280, 1280},
        .down = {KX_BLOCK_CROSS_ATTN, KX_BLOCK_CROSS_ATTN, KX_BLOCK_CROSS_ATTN, KX_BLOCK_PLAIN},
        .up = {KX_BLOCK_PLAIN, KX_BLOCK_CROSS_ATTN, KX_BLOCK_CROSS_ATTN, KX_BLOCK_CROSS_ATTN},
        .layers = {2, 2, 2, 2},
        .heads = {8, 8, 8, 8},
        .transformer_depth = {1, 1, 1, 1},
        .cross_attention_dim = 768,
        .norm_groups = 32,
        .norm_eps = 1e-5f,
        .flip_sin_to_cos = true};
    contexts();
    check_model("SD1.5", &text, &unet, 64, true);
}

TEST(sd21_agrees_with_the_cpu) {
    static const struct kx_text_config text = {.vocab_size = 49408,
                                               .hidden_size = 1024,
                                               .intermediate_size = 4096,
                                               .layers = 23,
                                               .heads = 16,
                                               .positions_max = 77,
                                               .layer_norm_eps = 1e-5f,
                                               .eos_token_id = 2};
    static const struct kx_unet_config unet = {
        .in_channels = 4,
        .out_channels = 4,
        .levels = 4,
        .channels = {320, 640, 1280, 1280},
        .down = {KX_BLOCK_CROSS_ATTN, KX_BLOCK_CROSS_ATTN, KX_BLOCK_CROSS_ATTN, KX_BLOCK_PLAIN},
        .up = {KX_BLOCK_PLAIN, KX_BLOCK_CROSS_ATTN, KX_BLOCK_CROSS_ATTN, KX_BLOCK_CROSS_ATTN},
        .layers = {2, 2, 2, 2},
        .heads = {5, 10, 20, 20},
        .transformer_depth = {1, 1, 1, 1},
        .cross_attention_dim = 1024,
        .norm_groups = 32,
        .norm_eps = 1e-5f,
        .linear_projection = true,
        .flip_sin_to_cos = true};
    contexts();
    check_model("SD2.1", &text, &unet, 96, true);
}

TEST(sdxl_agrees_with_the_cpu) {
    static const struct kx_text_config text = {.vocab_size = 49408,
                                               .hidden_size = 1280,
                                               .intermediate_size = 5120,
                                               .layers = 32,
                                               .heads = 20,
                                               .positions_max = 77,
                                               .layer_norm_eps = 1e-5f,
                                               .eos_token_id = 2,
                                               .projection_dim = 1280,
                                               .projected = true,
                                               .penultimate = true};
    static const struct kx_unet_config unet = {
        .in_channels = 4,
        .out_channels = 4,
        .levels = 3,
        .channels = {320, 640, 1280},
        .down = {KX_BLOCK_PLAIN, KX_BLOCK_CROSS_ATTN, KX_BLOCK_CROSS_ATTN},
        .up = {KX_BLOCK_CROSS_ATTN, KX_BLOCK_CROSS_ATTN, KX_BLOCK_PLAIN},
        .layers = {2, 2, 2},
        .heads = {5, 10, 20},
        .transformer_depth = {1, 2, 10},
        .cross_attention_dim = 2048,
        .norm_groups = 32,
        .norm_eps = 1e-5f,
        .linear_projection = true,
        .flip_sin_to_cos = true,
        .pooled_width = 1280,
        .addition_time_width = 256};
    contexts();
    check_model("SDXL", &text, &unet, 128, false);
}

#endif

TEST(the_contexts_end_with_nothing_left) {
    contexts();
    for (int type = 0; type < 2; type++) kx_ctx_destroy(cuda[type]);
    kx_ctx_destroy(cpu);
    cpu = NULL;
}
