/* LoRAs against the same model whose files were changed instead: the same bytes; and taken off again. The
 * folder is a golden pipeline's, copied with other weights. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "kernels/io/safetensors.h"
#include "kernels/kiln.h"
#include "tests/unit/check.h"

#define SIZE 16
#define RANK 2

static char dir[64]; /* of this test */

static const char *in_dir(const char *name) {
    static char path[4][256];
    static int at;
    at = (at + 1) % 4;
    snprintf(path[at], sizeof path[at], "%s/%s", dir, name);
    return path[at];
}

static float number(uint64_t *s) {
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return (float)(*s >> 40) / 8388608.0f - 1;
}

/* One layer's change: how its names are written, and where it goes. */
struct change {
    const char *down, *up, *alpha_key; /* in the LoRA's file; alpha_key NULL: none */
    float alpha;
    const char *folder, *weight; /* the model's */
};

static const struct change changes[] = {
    {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
     "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight",
     "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.alpha", 1, "unet",
     "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"},
    {"unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.lora_A.weight",
     "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.lora_B.weight", NULL, 0, "unet",
     "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight"},
    {"lora_unet_output_blocks_0_0_in_layers_2.lora_down.weight",
     "lora_unet_output_blocks_0_0_in_layers_2.lora_up.weight", NULL, 0, "unet",
     "up_blocks.0.resnets.0.conv1.weight"},
    {"unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.down.weight",
     "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight", NULL, 0,
     "unet", "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0.weight"},
    {"lora_te_text_model_encoder_layers_1_mlp_fc1.lora_down.weight",
     "lora_te_text_model_encoder_layers_1_mlp_fc1.lora_up.weight",
     "lora_te_text_model_encoder_layers_1_mlp_fc1.alpha", 4, "text_encoder",
     "text_model.encoder.layers.1.mlp.fc1.weight"},
};
#define CHANGES (sizeof changes / sizeof *changes)

static struct kx_weights *open_part(const char *folder) {
    struct kx_weights *w;
    struct kn_err err = {0};
    CHECK_MSG(!kx_weights_open(folder, strstr(folder, "text_encoder") ? "model" : "diffusion_pytorch_model",
                               &w, &err),
              "%s", err.text);
    return w;
}

/* The model's tensor that a change is of; text encoders come with and without a prefix. */
static const struct kx_weight *model_weight(const struct kx_weights *w, const char *name) {
    const struct kx_weight *v = kx_weights_find(w, name);
    if (!v && !strncmp(name, "text_model.", 11)) v = kx_weights_find(w, name + 11);
    CHECK_MSG(v != NULL, "%s: the golden pipeline has no such tensor", name);
    return v;
}

static void sizes(const struct change *c, size_t *rows, size_t *columns, const struct kx_weight **out,
                  struct kx_weights **w) {
    char folder[256];
    snprintf(folder, sizeof folder, "%s/pipelines/sd1/%s", KILN_GOLDEN_DIR, c->folder);
    *w = open_part(folder);
    *out = model_weight(*w, c->weight);
    *rows = (size_t)(*out)->shape[0];
    *columns = 1;
    for (int i = 1; i < (*out)->ndim; i++) *columns *= (size_t)(*out)->shape[i];
}

/* down and up of a change, the same each time. */
static void numbers(size_t i, size_t rows, size_t columns, float *down, float *up) {
    uint64_t s = 77 + i;
    for (size_t k = 0; k < RANK * columns; k++) down[k] = 0.5f * number(&s);
    for (size_t k = 0; k < RANK * rows; k++) up[k] = 0.5f * number(&s);
}

static void write_lora(const char *path, size_t first, size_t count, const char *extra) {
    struct kx_dump *d;
    struct kn_err err = {0};
    CHECK(!kx_dump_create(&d));
    for (size_t i = first; i < first + count; i++) {
        const struct kx_weight *v;
        struct kx_weights *w;
        size_t rows, columns;
        sizes(&changes[i], &rows, &columns, &v, &w);
        float *down = malloc(RANK * columns * sizeof *down), *up = malloc(RANK * rows * sizeof *up);
        CHECK(down && up);
        numbers(i, rows, columns, down, up);
        int64_t down_shape[4] = {RANK, v->ndim > 1 ? v->shape[1] : 1, v->ndim > 2 ? v->shape[2] : 1,
                                 v->ndim > 3 ? v->shape[3] : 1},
                up_shape[4] = {(int64_t)rows, RANK, 1, 1};
        CHECK(!kx_dump_add(d, changes[i].down, KX_F32, down_shape, v->ndim, down));
        CHECK(!kx_dump_add(d, changes[i].up, KX_F32, up_shape, v->ndim, up));
        if (changes[i].alpha_key)
            CHECK(!kx_dump_add(d, changes[i].alpha_key, KX_F32, NULL, 0, &changes[i].alpha));
        free(down), free(up);
        kx_weights_close(w);
    }
    if (extra) CHECK(!kx_dump_add(d, extra, KX_F32, (int64_t[]){1, 1}, 2, &(float){1}));
    CHECK_MSG(!kx_dump_write(d, path, &err), "%s", err.text);
    kx_dump_destroy(d);
}

/* A component's weights with the changes in them. */
static void write_changed(const char *folder, float scale) {
    char from[256], to[256];
    struct kx_dump *d;
    struct kn_err err = {0};
    snprintf(from, sizeof from, "%s/pipelines/sd1/%s", KILN_GOLDEN_DIR, folder);
    struct kx_weights *w = open_part(from);
    CHECK(!kx_dump_create(&d));
    for (size_t t = 0; t < kx_weights_count(w); t++) {
        const struct kx_weight *v = kx_weights_at(w, t);
        size_t n = 1;
        for (int i = 0; i < v->ndim; i++) n *= (size_t)v->shape[i];
        float *values = malloc(n * sizeof *values);
        CHECK(values);
        if (v->dtype == KX_I64) { /* position_ids */
            free(values);
            continue;
        }
        CHECK(!kx_weight_f32(v, values));
        for (size_t i = 0; i < CHANGES; i++) {
            const struct change *c = &changes[i];
            if (strcmp(c->folder, folder) || model_weight(w, c->weight) != v) continue;
            size_t rows = (size_t)v->shape[0], columns = n / rows;
            float *down = malloc(RANK * columns * sizeof *down), *up = malloc(RANK * rows * sizeof *up);
            CHECK(down && up);
            numbers(i, rows, columns, down, up);
            float s = scale * (c->alpha_key ? c->alpha / RANK : 1);
            for (size_t o = 0; o < rows; o++)
                for (size_t r = 0; r < RANK; r++)
                    for (size_t k = 0; k < columns; k++)
                        values[o * columns + k] += s * up[o * RANK + r] * down[r * columns + k];
            free(down), free(up);
        }
        CHECK(!kx_dump_add(d, v->name, KX_F32, v->shape, v->ndim, values));
        free(values);
    }
    snprintf(to, sizeof to, "%s/model/%s/%s.safetensors", dir, folder,
             !strcmp(folder, "text_encoder") ? "model" : "diffusion_pytorch_model");
    unlink(to);
    CHECK_MSG(!kx_dump_write(d, to, &err), "%s", err.text);
    kx_dump_destroy(d);
    kx_weights_close(w);
}

static void make_changed_model(float scale) {
    char command[1024];
    snprintf(command, sizeof command, "cp -r '%s/pipelines/sd1' '%s/model'", KILN_GOLDEN_DIR, dir);
    CHECK_INT(system(command), 0);
    write_changed("unet", scale);
    write_changed("text_encoder", scale);
}

static void setup(void) {
    snprintf(dir, sizeof dir, "/tmp/kn-lora-XXXXXX");
    CHECK(mkdtemp(dir));
}

static void cleanup(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    CHECK_INT(system(command), 0);
}

struct picture {
    uint8_t rgb[SIZE * SIZE * 3];
};

static int on_image(void *ctx, const struct kiln_image *im) {
    CHECK(im->rgb);
    memcpy(((struct picture *)ctx)->rgb, im->rgb, sizeof((struct picture *)ctx)->rgb);
    return 0;
}

static struct picture render(struct kiln_model *m) {
    static char prompt[] = "a red circle", negative[] = "";
    struct picture p;
    struct kn_err err = {0};
    struct kn_task t = {.prompt = prompt,
                        .negative = negative,
                        .seed = 5,
                        .cfg = 4,
                        .steps = 3,
                        .width = SIZE,
                        .height = SIZE,
                        .sampler = KN_SAMPLER_EULER,
                        .schedule = KN_SCHEDULE_NORMAL,
                        .set = KN_SET_ALL};
    CHECK_MSG(!kiln_render(m, &t, 1, &(struct kiln_callbacks){.ctx = &p, .image = on_image}, &err), "%s",
              err.text);
    return p;
}

static struct kiln_model *load(struct kiln_engine *e, const char *path) {
    struct kiln_model *m;
    struct kn_err err = {0};
    CHECK_MSG(!kiln_model_load(e, path, &m, &err), "%s", err.text);
    return m;
}

/* How far apart two pictures are at most. */
static int apart(const struct picture *a, const struct picture *b) {
    int most = 0;
    for (size_t i = 0; i < sizeof a->rgb; i++)
        if (abs(a->rgb[i] - b->rgb[i]) > most) most = abs(a->rgb[i] - b->rgb[i]);
    return most;
}

TEST(a_lora_is_the_model_with_changed_weights_and_leaves_nothing_behind) {
    struct kiln_engine *e;
    struct kn_err err = {0};
    setup();
    make_changed_model(0.75f);
    write_lora(in_dir("a.safetensors"), 0, 2, NULL); /* in two files: they add up */
    write_lora(in_dir("b.safetensors"), 2, CHANGES - 2, NULL);
    CHECK(!kiln_engine_create(&(struct kiln_engine_options){.threads = 2}, &e, &err));
    struct kiln_model *plain = load(e, KILN_GOLDEN_DIR "/pipelines/sd1"), *changed = load(e, in_dir("model"));
    struct picture before = render(plain), want = render(changed);
    CHECK_MSG(apart(&before, &want) > 3, "the changes change nothing");
    const struct kiln_lora loras[2] = {{in_dir("a.safetensors"), 0.75f}, {in_dir("b.safetensors"), 0.75f}};
    CHECK_MSG(!kiln_model_set_loras(plain, loras, 2, &err), "%s", err.text);
    struct picture got = render(plain);
    CHECK_MSG(apart(&got, &want) <= 1, "%d apart", apart(&got, &want));
    CHECK_MSG(!kiln_model_set_loras(plain, loras, 1, &err), "%s", err.text);
    struct picture half = render(plain);
    CHECK(apart(&half, &want) > 1 && apart(&half, &before) > 1);
    CHECK_MSG(!kiln_model_set_loras(plain, NULL, 0, &err), "%s", err.text);
    struct picture after = render(plain);
    CHECK_MEM(after.rgb, before.rgb, sizeof after.rgb);
    CHECK_MSG(!kiln_model_set_loras(plain, loras, 2, &err), "%s", err.text);
    struct picture again = render(plain);
    CHECK_MEM(again.rgb, got.rgb, sizeof again.rgb);
    kiln_model_destroy(plain);
    kiln_model_destroy(changed);
    kiln_engine_destroy(e);
    cleanup();
}

TEST(what_fits_nothing_is_an_error_and_changes_nothing) {
    static const struct {
        const char *key, *says;
        int code;
    } bad[] = {{"lora_unet_down_blocks_9_attn.lora_down.weight", "no such layer", KN_EPARSE},
               {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "no such layer", KN_EPARSE},
               {"unet.conv_in.lora_A.weight", "its up is missing", KN_EPARSE},
               {"unet.conv_in.dora_scale", "not of a kind", KN_EUNSUPPORTED},
               {"lora_unet_conv_in.hada_w1_a", "not of a kind", KN_EUNSUPPORTED}};
    struct kiln_engine *e;
    struct kn_err err = {0};
    setup();
    CHECK(!kiln_engine_create(&(struct kiln_engine_options){.threads = 1}, &e, &err));
    struct kiln_model *m = load(e, KILN_GOLDEN_DIR "/pipelines/sd1");
    struct picture before = render(m);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_lora(in_dir("bad.safetensors"), 0, 1, bad[i].key);
        struct kiln_lora l = {in_dir("bad.safetensors"), 1};
        CHECK_INT(kiln_model_set_loras(m, &l, 1, &err), bad[i].code);
        CHECK_MSG(strstr(err.text, bad[i].says) && strstr(err.text, "bad.safetensors"), "%s", err.text);
        struct picture after = render(m);
        CHECK_MEM(after.rgb, before.rgb, sizeof after.rgb);
        unlink(in_dir("bad.safetensors"));
    }
    struct kiln_lora none = {in_dir("none.safetensors"), 1};
    CHECK_INT(kiln_model_set_loras(m, &none, 1, &err), KN_ENOENT);
    kiln_model_destroy(m);
    kiln_engine_destroy(e);
    cleanup();
}
