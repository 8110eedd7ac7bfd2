/* The networks' answers to weights that do not fit their configuration: every tensor of the small golden
 * pipelines is left out, misshaped and replaced in turn, and one is added. Files: tests/golden/make.py. */
#include <math.h>
#include <stdbool.h>

#include "base/buf.h"
#include "kernels/io/config.h"
#include "kernels/io/safetensors.h"
#include "kernels/models/models.h"
#include "kernels/ops.h"
#include "tests/unit/check.h"

/* The change that is made to one tensor of a component. */
enum change { AS_IT_IS, LEFT_OUT, ONE_ROW_MORE, WHOLE_NUMBERS, WITHOUT_ONES, WITH_ONES };

struct part {
    const char *dir, *stem;
    int (*create)(struct kx_ctx *ctx, const struct kx_config *cfg, const struct kx_weights *w,
                  struct kn_err *err);
};

static int create_text(struct kx_ctx *ctx, const struct kx_config *cfg, const struct kx_weights *w,
                       struct kn_err *err) {
    struct kx_text *t;
    int rc = kx_text_create(ctx, &cfg->text, w, &t, err);
    CHECK(!rc || !t);
    kx_text_destroy(t);
    return rc;
}

static int create_text2(struct kx_ctx *ctx, const struct kx_config *cfg, const struct kx_weights *w,
                        struct kn_err *err) {
    struct kx_config second = *cfg;
    second.text = cfg->text2;
    return create_text(ctx, &second, w, err);
}

static int create_unet(struct kx_ctx *ctx, const struct kx_config *cfg, const struct kx_weights *w,
                       struct kn_err *err) {
    struct kx_unet *u;
    int rc = kx_unet_create(ctx, &cfg->unet, w, &u, err);
    CHECK(!rc || !u);
    kx_unet_destroy(u);
    return rc;
}

static int create_vae(struct kx_ctx *ctx, const struct kx_config *cfg, const struct kx_weights *w,
                      struct kn_err *err) {
    struct kx_vae *v;
    int rc = kx_vae_create(ctx, &cfg->vae, w, &v, err);
    CHECK(!rc || !v);
    kx_vae_destroy(v);
    return rc;
}

static const struct part parts[] = {{"text_encoder", "model", create_text},
                                    {"unet", "diffusion_pytorch_model", create_unet},
                                    {"vae", "diffusion_pytorch_model", create_vae},
                                    {"text_encoder_2", "model", create_text2}}; /* of XL's pipelines */
enum { PARTS = 3, XL_PARTS = 4 };

static int begin(const char *pipeline, const struct part *p, struct kx_ctx **ctx, struct kx_config *cfg,
                 struct kx_weights **w) {
    struct kn_err err = {0};
    char path[1024];
    snprintf(path, sizeof path, "%s/pipelines/%s", KILN_GOLDEN_DIR, pipeline);
    CHECK_MSG(!kx_config_read(path, cfg, &err), "%s", err.text);
    snprintf(path, sizeof path, "%s/pipelines/%s/%s", KILN_GOLDEN_DIR, pipeline, p->dir);
    CHECK_MSG(!kx_weights_open(path, p->stem, w, &err), "%s", err.text);
    CHECK_MSG(!kx_cpu_ctx_create(1, ctx, &err), "%s", err.text);
    return (int)kx_weights_count(*w);
}

/* Appends a tensor's line to the header and its data to the data. */
static void append(struct kn_buf *header, struct kn_buf *data, const char *name, const char *dtype,
                   const int64_t *shape, int ndim, const void *bytes, size_t have, size_t want) {
    CHECK(!kn_buf_appendf(header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", header->len ? "," : "", name,
                          dtype));
    for (int i = 0; i < ndim; i++)
        CHECK(!kn_buf_appendf(header, "%s%lld", i ? "," : "", (long long)shape[i]));
    CHECK(!kn_buf_appendf(header, "],\"data_offsets\":[%zu,%zu]}", data->len, data->len + want));
    CHECK(!kn_buf_append(data, bytes, have < want ? have : want));
    for (size_t i = have; i < want; i++) CHECK(!kn_buf_append(data, "", 1));
}

static void append_changed(struct kn_buf *header, struct kn_buf *data, const struct kx_weight *w,
                           enum change change) {
    static const char *const dtypes[] = {[KX_F32] = "F32", [KX_F16] = "F16", [KX_BF16] = "BF16"};
    int64_t shape[KX_NDIM_MAX];
    int ndim = w->ndim;
    memcpy(shape, w->shape, sizeof shape);
    size_t bytes = w->bytes;
    CHECK(w->dtype <= KX_BF16);
    const char *dtype = dtypes[w->dtype];
    if (change == LEFT_OUT) return;
    if (change == ONE_ROW_MORE) {
        bytes += bytes / (size_t)shape[0];
        shape[0]++;
    } else if (change == WHOLE_NUMBERS) {
        dtype = "U8";
        bytes = 1;
        for (int i = 0; i < ndim; i++) bytes *= (size_t)shape[i];
    } else if (change == WITHOUT_ONES) {
        while (ndim > 2 && shape[ndim - 1] == 1) ndim--;
    } else if (change == WITH_ONES) {
        while (ndim < 4) shape[ndim++] = 1;
    }
    append(header, data, w->name, dtype, shape, ndim, w->data, w->bytes, bytes);
}

/* Creates the part from its weights with tensor `which` (−1: none) changed and, if given, one more of the
 * name `extra`. */
static int create_changed(const struct part *p, struct kx_ctx *ctx, const struct kx_config *cfg,
                          const struct kx_weights *from, int which, enum change change, const char *extra,
                          struct kn_err *err) {
    struct kn_buf header, data, file;
    kn_buf_init(&header, 1 << 20);
    kn_buf_init(&data, 1 << 24);
    kn_buf_init(&file, 1 << 24);
    for (int i = 0; i < (int)kx_weights_count(from); i++)
        append_changed(&header, &data, kx_weights_at(from, (size_t)i), i == which ? change : AS_IT_IS);
    if (extra) append(&header, &data, extra, "F32", (int64_t[]){1}, 1, "abcd", 4, 4);
    uint64_t length = header.len + 2;
    CHECK(!kn_buf_append(&file, &length, sizeof length)); /* little-endian, as this machine is */
    CHECK(!kn_buf_appends(&file, "{"));
    CHECK(!kn_buf_append(&file, header.data, header.len));
    CHECK(!kn_buf_appends(&file, "}"));
    CHECK(!kn_buf_append(&file, data.data, data.len));
    struct kx_weights *w;
    *err = (struct kn_err){0};
    CHECK_MSG(!kx_weights_parse(file.data, file.len, "changed", &w, err), "%s", err->text);
    int rc = p->create(ctx, cfg, w, err);
    kx_weights_close(w);
    kn_buf_fini(&header);
    kn_buf_fini(&data);
    kn_buf_fini(&file);
    return rc;
}

/* The autoencoder's other half is not read, nor what XL's first encoder does behind its states. */
static bool unread(const struct part *p, const struct kx_config *cfg, const char *name) {
    bool early = p->create == create_text && cfg->text.penultimate;
    if (early && (strstr(name, "encoder.layers.2.") || strstr(name, "final_layer_norm."))) return true;
    return !strncmp(name, "encoder.conv", 12) || !strncmp(name, "encoder.down", 12) ||
           !strncmp(name, "encoder.mid", 11) || !strncmp(name, "quant_conv.", 11);
}

static void check_every_tensor(const char *pipeline, enum change change, int code) {
    int count = !strcmp(pipeline, "sdxl") ? XL_PARTS : PARTS;
    for (int k = 0; k < count; k++) {
        struct kx_ctx *ctx;
        struct kx_config cfg;
        struct kx_weights *w;
        int n = begin(pipeline, &parts[k], &ctx, &cfg, &w), checked = 0;
        struct kn_err err;
        CHECK_MSG(!create_changed(&parts[k], ctx, &cfg, w, -1, AS_IT_IS, NULL, &err), "%s", err.text);
        for (int i = 0; i < n; i++) {
            const char *name = kx_weights_at(w, (size_t)i)->name;
            int rc = create_changed(&parts[k], ctx, &cfg, w, i, change, NULL, &err);
            CHECK_MSG(rc == (unread(&parts[k], &cfg, name) ? 0 : code), "%s: %d: %s", name, rc, err.text);
            CHECK_MSG(!rc || strstr(err.text, name), "%s is not named: %s", name, err.text);
            checked += rc != 0;
        }
        CHECK(checked > 15);
        kx_weights_close(w);
        kx_ctx_destroy(ctx);
    }
}

TEST(a_missing_tensor_is_named) {
    check_every_tensor("sd1", LEFT_OUT, KN_EPARSE);
    check_every_tensor("v8", LEFT_OUT, KN_EPARSE);
    check_every_tensor("sdxl", LEFT_OUT, KN_EPARSE);
}

TEST(a_tensor_of_another_shape_is_named) {
    check_every_tensor("sd1", ONE_ROW_MORE, KN_EPARSE);
    check_every_tensor("wide", ONE_ROW_MORE, KN_EPARSE);
}

TEST(whole_numbers_for_weights_are_refused) {
    check_every_tensor("v8", WHOLE_NUMBERS, KN_EUNSUPPORTED);
}

TEST(a_tensor_that_has_no_place_is_named_and_the_harmless_ones_are_not) {
    static const struct {
        int part;
        const char *name;
        bool fine;
    } cases[] = {{0, "text_model.encoder.layers.2.mlp.fc1.weight", false},
                 {0, "text_model.embeddings.position_ids", true},
                 {0, "text_projection.weight", true},
                 {1, "down_blocks.1.attentions.0.norm.weight", false},
                 {1, "add_embedding.linear_1.weight", false},
                 {1, "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.bias", false},
                 {2, "decoder.up_blocks.2.resnets.0.norm1.weight", false},
                 {2, "encoder.more.weight", true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct part *p = &parts[cases[i].part];
        struct kx_ctx *ctx;
        struct kx_config cfg;
        struct kx_weights *w;
        struct kn_err err;
        begin("sd1", p, &ctx, &cfg, &w);
        int rc = create_changed(p, ctx, &cfg, w, -1, AS_IT_IS, cases[i].name, &err);
        CHECK_MSG(rc == (cases[i].fine ? 0 : KN_EPARSE), "%s: %d", cases[i].name, rc);
        CHECK_MSG(!rc || strstr(err.text, cases[i].name), "%s", err.text);
        kx_weights_close(w);
        kx_ctx_destroy(ctx);
    }
}

TEST(a_matrix_and_a_convolution_of_one_pixel_are_the_same) {
    static const struct {
        const char *pipeline, *name;
        enum change change;
    } cases[] = {{"sd1", "mid_block.attentions.0.proj_in.weight", WITHOUT_ONES},
                 {"sd1", "down_blocks.1.resnets.0.conv_shortcut.weight", WITHOUT_ONES},
                 {"v8", "mid_block.attentions.0.proj_out.weight", WITH_ONES}};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        struct kx_ctx *ctx;
        struct kx_config cfg;
        struct kx_weights *w;
        struct kn_err err;
        int n = begin(cases[k].pipeline, &parts[1], &ctx, &cfg, &w), which = -1;
        for (int i = 0; i < n; i++)
            if (!strcmp(kx_weights_at(w, (size_t)i)->name, cases[k].name)) which = i;
        CHECK(which >= 0);
        CHECK_MSG(!create_changed(&parts[1], ctx, &cfg, w, which, cases[k].change, NULL, &err), "%s",
                  err.text);
        kx_weights_close(w);
        kx_ctx_destroy(ctx);
    }
}

TEST(heads_that_do_not_divide_the_channels_are_refused) {
    struct kx_ctx *ctx;
    struct kx_config cfg;
    struct kx_weights *w;
    struct kn_err err = {0};
    begin("sd1", &parts[1], &ctx, &cfg, &w);
    cfg.unet.heads[0] = 3;
    CHECK_INT(parts[1].create(ctx, &cfg, w, &err), KN_EPARSE);
    CHECK_MSG(strstr(err.text, "3 heads do not divide 16 channels"), "%s", err.text);
    kx_weights_close(w);
    kx_ctx_destroy(ctx);
}

TEST(calls_that_do_not_fit_the_plan_are_refused) {
    struct kx_ctx *ctx;
    struct kx_config cfg;
    struct kx_weights *w;
    struct kx_unet *u;
    struct kx_text *t;
    struct kn_err err = {0};
    static float in[4 * 64 * 3], out[4 * 64 * 3], states[3 * 77 * 32];
    static const float times[2] = {1, 2};
    static const int32_t rows[3] = {0, 0, 1};
    static const int32_t ids[77] = {[5] = 574};
    begin("sd1", &parts[1], &ctx, &cfg, &w);
    CHECK_MSG(!kx_unet_create(ctx, &cfg.unet, w, &u, &err), "%s", err.text);
    CHECK_INT(kx_unet_forward(u, in, rows, rows, 1, out, &err), KN_EINVAL); /* nothing is set yet */
    CHECK_INT(kx_unet_set_text(u, states, 1, 77, &err), KN_EINVAL);         /* no plan yet */
    CHECK_INT(kx_unet_set_times(u, times, 0, &err), KN_EINVAL);
    CHECK_INT(kx_unet_plan(u, 2, 8, 7, 77, &err), KN_EINVAL); /* 7 cannot be halved */
    CHECK_MSG(!kx_unet_plan(u, 2, 8, 8, 77, &err), "%s", err.text);
    CHECK_INT(kx_unet_set_text(u, states, 2, 76, &err), KN_EINVAL);
    CHECK_MSG(!kx_unet_set_text(u, states, 2, 77, &err), "%s", err.text);
    CHECK_INT(kx_unet_forward(u, in, rows, rows, 3, out, &err), KN_EINVAL); /* no timesteps yet */
    CHECK_MSG(!kx_unet_set_times(u, times, 2, &err), "%s", err.text);
    CHECK_MSG(!kx_unet_forward(u, in, rows, rows, 3, out, &err), "%s", err.text);
    kx_unet_destroy(u);
    kx_weights_close(w);
    kx_ctx_destroy(ctx);

    begin("sd1", &parts[0], &ctx, &cfg, &w);
    CHECK_MSG(!kx_text_create(ctx, &cfg.text, w, &t, &err), "%s", err.text);
    CHECK_INT(kx_text_encode(t, ids, 1, 77, states, NULL, &err), KN_EINVAL); /* token 574 of 574 */
    CHECK_INT(kx_text_encode(t, ids, 1, 78, states, NULL, &err), KN_EINVAL);
    kx_text_destroy(t);
    kx_weights_close(w);
    kx_ctx_destroy(ctx);
}

TEST(a_text_ends_at_its_largest_id_or_at_the_first_that_the_config_says) {
    enum { LENGTH = 8, HIDDEN = 12, WIDTH = 10 };
    static const struct {
        int eos;
        int32_t ids[LENGTH];
        int at;
    } rows[] = {{2, {572, 320, 573, 5, 0, 0, 0, 0}, 2},
                {2, {572, 320, 300, 573, 573, 573, 573, 573}, 3},
                {7, {572, 573, 7, 320, 7, 7, 0, 0}, 2},
                {573, {572, 320, 573, 573, 573, 573, 573, 573}, 2},
                {9, {572, 320, 573, 0, 0, 0, 0, 0}, 0}};
    struct kx_ctx *ctx;
    struct kx_config cfg;
    struct kx_weights *w;
    struct kn_err err = {0};
    float projection[WIDTH * HIDDEN];
    begin("sdxl", &parts[3], &ctx, &cfg, &w);
    CHECK(cfg.text2.hidden_size == HIDDEN && cfg.text2.projection_dim == WIDTH);
    CHECK(!kx_weight_f32(kx_weights_find(w, "text_projection.weight"), projection));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        float states[LENGTH * HIDDEN], pooled[2][WIDTH];
        for (int early = 1; early >= 0; early--) { /* last: the states behind the final norm */
            struct kx_text *t;
            struct kx_text_config c = cfg.text2;
            c.eos_token_id = rows[i].eos;
            c.penultimate = early;
            CHECK_MSG(!kx_text_create(ctx, &c, w, &t, &err), "%s", err.text);
            CHECK_MSG(!kx_text_encode(t, rows[i].ids, 1, LENGTH, states, pooled[early], &err), "%s",
                      err.text);
            kx_text_destroy(t);
        }
        CHECK_MEM(pooled[0], pooled[1], sizeof pooled[0]);
        for (int j = 0; j < WIDTH; j++) {
            double sum = 0;
            for (int k = 0; k < HIDDEN; k++)
                sum += (double)states[rows[i].at * HIDDEN + k] * (double)projection[j * HIDDEN + k];
            CHECK_MSG(fabs(sum - (double)pooled[0][j]) < 1e-5, "row %zu: %g is not %g", i,
                      (double)pooled[0][j], sum);
        }
    }
    kx_weights_close(w);
    kx_ctx_destroy(ctx);
}

TEST(pooled_texts_and_sizes_in_one_batch_are_each_their_own) {
    struct kx_ctx *ctx;
    struct kx_config cfg;
    struct kx_weights *w;
    struct kx_unet *u;
    struct kn_err err = {0};
    enum { N = 4, VALUES = 4 * 64, POOLED = 10, TIMES = 2, TEXTS = 3 };
    static float in[N * VALUES], together[N * VALUES], alone[VALUES], states[77 * 20], pooled[TEXTS * POOLED];
    static const float times[TIMES] = {10, 500.25f},
                       sizes[TEXTS * KX_TIME_IDS] = {32, 16, 0,  0,  32, 16, 64, 64, 0,
                                                     0,  64, 64, 16, 32, 4,  8,  16, 32};
    static const int32_t time[N] = {0, 1, 1, 0}, text[N] = {2, 0, 1, 0}, zeros[N] = {0};
    int32_t rows[N];
    for (int i = 0; i < N * VALUES; i++) in[i] = (float)(i * 7919 % 1000) / 500 - 1;
    for (int i = 0; i < 77 * 20; i++) states[i] = (float)(i * 104729 % 1000) / 500 - 1;
    for (int i = 0; i < TEXTS * POOLED; i++) pooled[i] = (float)(i * 104729 % 777) / 300 - 1;
    for (int i = 0; i < N; i++) rows[i] = time[i] * TEXTS + text[i];
    begin("sdxl", &parts[1], &ctx, &cfg, &w);
    CHECK_INT(cfg.unet.pooled_width, POOLED);
    CHECK_MSG(!kx_unet_create(ctx, &cfg.unet, w, &u, &err), "%s", err.text);
    CHECK_MSG(!kx_unet_plan(u, N, 8, 8, 77, &err), "%s", err.text);
    CHECK_MSG(!kx_unet_set_text(u, states, 1, 77, &err), "%s", err.text);
    CHECK_INT(kx_unet_set_times(u, times, TIMES, &err), KN_EINVAL); /* no additions yet */
    CHECK_INT(kx_unet_set_added_cond(u, pooled, sizes, 0, &err), KN_EINVAL);
    CHECK_MSG(!kx_unet_set_added_cond(u, pooled, sizes, TEXTS, &err), "%s", err.text);
    CHECK_INT(kx_unet_forward(u, in, rows, zeros, N, together, &err),
              KN_EINVAL); /* their time_proj is not set */
    CHECK_INT(kx_unet_set_times(u, times, KX_UNET_TIMES_MAX, &err), KN_EOOM);
    CHECK_MSG(!kx_unet_set_times(u, times, TIMES, &err), "%s", err.text);
    CHECK_MSG(!kx_unet_forward(u, in, rows, zeros, N, together, &err), "%s", err.text);
    for (int i = 0; i < N; i++) {
        CHECK(!kx_unet_set_added_cond(u, pooled + text[i] * POOLED, sizes + text[i] * KX_TIME_IDS, 1, &err));
        CHECK(!kx_unet_set_times(u, times + time[i], 1, &err));
        CHECK_MSG(!kx_unet_forward(u, in + i * VALUES, zeros, zeros, 1, alone, &err), "%s", err.text);
        CHECK_MEM(together + i * VALUES, alone, sizeof alone);
    }
    /* each of the six numbers and the text move the picture */
    for (int k = -1; k < KX_TIME_IDS; k++) {
        float moved[POOLED + KX_TIME_IDS], out[VALUES];
        memcpy(moved, pooled, POOLED * sizeof *moved);
        memcpy(moved + POOLED, sizes, KX_TIME_IDS * sizeof *moved);
        moved[k < 0 ? 3 : POOLED + k] += 7;
        CHECK(!kx_unet_set_added_cond(u, moved, moved + POOLED, 1, &err));
        CHECK(!kx_unet_set_times(u, times + 1, 1, &err));
        CHECK(!kx_unet_forward(u, in + VALUES, zeros, zeros, 1, out, &err));
        CHECK_MSG(memcmp(out, together + VALUES, sizeof out), "number %d does nothing", k);
    }
    kx_unet_destroy(u);
    kx_weights_close(w);
    kx_ctx_destroy(ctx);
}

TEST(different_timesteps_in_one_batch_are_each_their_own) {
    struct kx_ctx *ctx;
    struct kx_config cfg;
    struct kx_weights *w;
    struct kx_unet *u;
    struct kn_err err = {0};
    enum { N = 4, VALUES = 4 * 64 };
    static float in[N * VALUES], together[N * VALUES], alone[VALUES], states[N * 77 * 32];
    static const float times[3] = {10, 500.25f, 999};
    static const int32_t time_row[N] = {0, 1, 0, 2}, text_row[N] = {0, 1, 0, 2}, first[1] = {0};
    for (int i = 0; i < N * VALUES; i++) in[i] = (float)(i * 7919 % 1000) / 500 - 1;
    for (int i = 0; i < N * 77 * 32; i++) states[i] = (float)(i * 104729 % 1000) / 500 - 1;
    begin("sd1", &parts[1], &ctx, &cfg, &w);
    CHECK_MSG(!kx_unet_create(ctx, &cfg.unet, w, &u, &err), "%s", err.text);
    CHECK_MSG(!kx_unet_plan(u, N, 8, 8, 77, &err), "%s", err.text);
    CHECK_MSG(!kx_unet_set_times(u, times, 3, &err), "%s", err.text);
    CHECK_MSG(!kx_unet_set_text(u, states, 3, 77, &err), "%s", err.text); /* 0 and 2 have the same */
    CHECK_MSG(!kx_unet_forward(u, in, time_row, text_row, N, together, &err), "%s", err.text);
    for (int i = 0; i < N; i++) {
        CHECK_MSG(!kx_unet_set_times(u, times + time_row[i], 1, &err), "%s", err.text);
        CHECK_MSG(!kx_unet_set_text(u, states + text_row[i] * 77 * 32, 1, 77, &err), "%s", err.text);
        CHECK_MSG(!kx_unet_forward(u, in + i * VALUES, first, first, 1, alone, &err), "%s", err.text);
        CHECK_MEM(together + i * VALUES, alone, sizeof alone);
    }
    kx_unet_destroy(u);
    kx_weights_close(w);
    kx_ctx_destroy(ctx);
}

TEST(plans_of_many_sizes_do_not_pile_up_and_change_no_bit) {
    struct kx_ctx *ctx;
    struct kx_config cfg;
    struct kx_weights *w;
    struct kx_vae *v;
    struct kn_err err = {0};
    enum { SIDE = 40 };
    int32_t finite;
    static float in[SIDE * SIDE * 4], first[16 * 16 * 3], again[16 * 16 * 3], other[4 * SIDE * SIDE * 3];
    for (int i = 0; i < SIDE * SIDE * 4; i++) in[i] = (float)(i * 7919 % 1000) / 500 - 1;
    begin("sd1", &parts[2], &ctx, &cfg, &w);
    CHECK_MSG(!kx_vae_create(ctx, &cfg.vae, w, &v, &err), "%s", err.text);
    CHECK_MSG(!kx_vae_decode(v, in, 1, 8, 8, first, NULL, &finite, &err), "%s", err.text);
    int sizes = 0;
    for (int h = 4; h <= SIDE && kx_plan_generation(ctx) == 0; h++)
        for (int x = 4; x <= SIDE && kx_plan_generation(ctx) == 0; x++, sizes++) {
            CHECK_MSG(!kx_vae_decode(v, in, 1, h, x, other, NULL, &finite, &err), "%s", err.text);
            kx_plan_trim(ctx);
        }
    CHECK_MSG(kx_plan_generation(ctx) == 1, "%d sizes are planned, and none is dropped", sizes);
    CHECK(sizes > 4);
    CHECK_MSG(!kx_vae_decode(v, in, 1, 8, 8, again, NULL, &finite, &err), "%s", err.text);
    CHECK_MEM(again, first, sizeof first);
    kx_vae_destroy(v);
    kx_weights_close(w);
    kx_ctx_destroy(ctx);
}
