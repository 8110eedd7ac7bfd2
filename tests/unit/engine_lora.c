/* LoRAs against the same model whose files were changed instead: the same bytes; and taken off again. The
 * folder is a golden pipeline's, copied with other weights. */
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "kernels/io/safetensors.h"
#include "kernels/kiln.h"
#include "kernels/lora_file.h"
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

/* ---- what others make of the same files (tests/golden/make_loras.py) */

/* The layer's weight in the model's own files, in f32. */
static float *base_weight(const char *pipeline, const char *component, const char *layer, size_t values) {
    char folder[256], name[256];
    snprintf(folder, sizeof folder, "%s/pipelines/%s/%s", KILN_GOLDEN_DIR, pipeline, component);
    snprintf(name, sizeof name, "%s.weight", layer);
    struct kx_weights *w = open_part(folder);
    const struct kx_weight *v = model_weight(w, name);
    float *out = malloc(values * sizeof *out);
    CHECK(out && !kx_weight_f32(v, out));
    kx_weights_close(w);
    return out;
}

/* Every merged weight of the case agrees, and no other layer is changed. */
static void check_merged(struct kiln_engine *e, const char *name, const char *file) {
    char path[256], golden[256];
    struct kx_weights *w;
    struct kx_lora_file f;
    struct kn_err err = {0};
    snprintf(golden, sizeof golden, "%s/loras/%s.merged.safetensors", KILN_GOLDEN_DIR, name);
    snprintf(path, sizeof path, "%s/loras/%s", KILN_GOLDEN_DIR, file);
    CHECK_MSG(!kx_weights_open_file(golden, &w, &err), "%s", err.text);
    const char *pipeline = kx_weights_metadata(w, "pipeline");
    CHECK(pipeline);
    snprintf(golden, sizeof golden, "%s/pipelines/%s", KILN_GOLDEN_DIR, pipeline);
    struct kiln_model *m = load(e, golden);
    CHECK_MSG(!kx_lora_open(m, path, &f, &err), "%s", err.text);
    CHECK_INT(f.count, kx_weights_count(w));
    for (size_t i = 0; i < kx_weights_count(w); i++) {
        const struct kx_weight *t = kx_weights_at(w, i);
        const struct kx_lora_delta *d = NULL;
        char component[64], flat[256];
        snprintf(component, sizeof component, "%.*s", (int)strcspn(t->name, "."), t->name);
        const char *layer = t->name + strlen(component) + 1, *bare = layer;
        if (!strncmp(bare, "text_model.", 11)) bare += 11;
        snprintf(flat, sizeof flat, "%s", bare);
        for (char *s = flat; *s; s++)
            if (*s == '.') *s = '_';
        for (int k = 0; k < f.count;
             k++) { /* by the model's name; of a layer that is not run, by the file's */
            char own[256];
            const struct kx_part *p = f.v[k].part;
            snprintf(own, sizeof own, "%s", p ? p->name : f.v[k].name);
            const char *o = strncmp(own, "text_model.", 11) ? own : own + 11;
            if (!strcmp(kx_lora_folders[f.v[k].network], component) && !strcmp(o, p ? bare : flat))
                d = &f.v[k];
        }
        CHECK_MSG(d, "%s: %s is not among the layers that are changed", name, t->name);
        size_t values = t->bytes / 4;
        CHECK(t->dtype == KX_F32 && (size_t)d->rows * (size_t)d->columns == values);
        float *to = base_weight(pipeline, component, layer, values), most = 0, off = 0;
        CHECK_MSG(!kx_lora_add(d, 1, to, &err), "%s", err.text);
        const float *want = t->data; /* 8-byte aligned, as the writer leaves it */
        for (size_t k = 0; k < values; k++) {
            most = fmaxf(most, fabsf(want[k]));
            off = fmaxf(off, fabsf(want[k] - to[k]));
        }
        CHECK_MSG(off <= 1e-6f * most, "%s: %s: %g off, of %g", name, t->name, (double)off, (double)most);
        free(to);
    }
    kx_lora_close(&f);
    kx_weights_close(w);
    kiln_model_destroy(m);
}

TEST(merged_weights_are_those_of_diffusers_and_peft) {
    static const char *const cases[][2] = {
        {"kohya_sd1", "kohya_sd1.safetensors"},
        {"kohya_blocks", "kohya_blocks.safetensors"},
        {"kohya_sdxl", "kohya_sdxl.safetensors"},
        {"diffusers_processors", "diffusers_processors.safetensors"},
        {"diffusers_layers", "diffusers_layers.safetensors"},
        {"diffusers_metadata", "diffusers_metadata.safetensors"},
        {"diffusers_unet", "diffusers_unet.safetensors"},
        {"peft_unet", "peft_unet/adapter_model.safetensors"},
        {"peft_text_encoder", "peft_text_encoder/adapter_model.safetensors"},
    };
    struct kiln_engine *e;
    struct kn_err err = {0};
    CHECK(!kiln_engine_create(&(struct kiln_engine_options){.threads = 1}, &e, &err));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_merged(e, cases[i][0], cases[i][1]);
    kiln_engine_destroy(e);
}

/* ---- how strongly */

TEST(patterns_fit_names_as_in_peft) {
    static const struct {
        const char *pattern, *name;
        int fits; /* −1: not a pattern that is read */
    } rows[] = {
        {"to_q", "a.attn1.to_q", 1},
        {"to_q", "to_q", 1},
        {"to_q", "a.xto_q", 0},
        {"o_q", "a.to_q", 0},
        {"to_q", "to_q.b", 0},
        {"attn1.to_q", "a.attn1.to_q", 1},
        {"attn1.to_q", "a.attn1xto_q", 1},
        {"attn1\\.to_q", "a.attn1xto_q", 0},
        {"^attn1.to_q", "a.attn1.to_q", 0},
        {"^a.attn1.to_q", "a.attn1.to_q", 1},
        {"attn1.*", "a.attn1.to_q", 1},
        {".*attn1.*", "a.xattn1.to_q", 1},
        {"attn1.*", "a.xattn1.to_q", 0},
        {"attn\\d.to_q$", "attn2.to_q", 1},
        {"attn\\d+.to_q", "attn12.to_q", 1},
        {"attn\\d?.to_q", "attn.to_q", 1},
        {"attn\\d", "attnx", 0},
        {"a+b", "aaab", 1},
        {"a+b", "b", 0},
        {"a*b", "b", 1},
        {"", "a.b", 0},
        {"a|b", "a", -1},
        {"(a)", "a", -1},
        {"a{2}", "aa", -1},
        {"[ab]", "a", -1},
        {"\\w", "a", -1},
        {"a*?", "a", -1},
        {"a\\", "a", -1},
        {"a^b", "a", -1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bool fits = false;
        int rc = kx_lora_pattern(rows[i].pattern, rows[i].name, &fits);
        CHECK_MSG(rows[i].fits < 0 ? rc == KN_EUNSUPPORTED : rc == 0 && fits == rows[i].fits,
                  "%s on %s: %d, %d", rows[i].pattern, rows[i].name, rc, fits);
    }
    char *many = calloc(1, 300);
    bool fits;
    CHECK(many);
    memset(many, 'a', 299);
    CHECK_INT(kx_lora_pattern(many, "a", &fits), KN_EUNSUPPORTED);
    free(many);
}

/* Reads a config and the scale of a layer of rank 4. */
static int scale_of(const char *json, const char *prefix, const char *module, float *scale,
                    struct kn_err *err) {
    struct kx_json j;
    struct kx_lora_config c;
    int rc = kx_json_parse("f", json, strlen(json), &j, err);
    if (!rc) rc = kx_lora_config_read(&j, prefix, &c, err);
    if (!rc) rc = kx_lora_config_scale(&c, module, 4, scale, err);
    json_object_put(j.o);
    return rc;
}

TEST(a_layers_scale_is_what_the_config_says) {
    static const struct {
        const char *json, *prefix, *module;
        float scale;
    } rows[] = {
        {"{\"r\":4,\"lora_alpha\":8}", "", "a.to_q", 2},
        {"{\"r\":4,\"lora_alpha\":8,\"use_rslora\":true}", "", "a.to_q", 4},
        {"{\"r\":4}", "", "a.to_q", 2}, /* PEFT's own lora_alpha is 8 */
        {"{\"unet.r\":4,\"unet.lora_alpha\":1,\"r\":9}", "unet.", "a.to_q", 0.25f},
        {"{\"r\":8,\"lora_alpha\":8,\"rank_pattern\":{\"to_k\":2,\"to_q\":4,\".*\":3}}", "", "a.to_q", 2},
        {"{\"r\":4,\"lora_alpha\":8,\"alpha_pattern\":{\"to_k\":1,\"a.to_q\":6.5,\"to_q\":3}}", "", "a.to_q",
         1.625f},
        {"{\"r\":4,\"lora_alpha\":8,\"rank_pattern\":null,\"alpha_pattern\":{}}", "", "a.to_q", 2},
        /* what moves no pixel */
        {"{\"r\":4,\"peft_type\":\"LORA\",\"bias\":\"none\",\"init_lora_weights\":\"gaussian\",\"use_dora\":false,"
         "\"modules_to_save\":null,\"lora_dropout\":0.5,\"fan_in_fan_out\":true,\"target_modules\":[\"to_q\"],"
         "\"layers_to_transform\":[1],\"qalora_group_size\":16,\"some_later_key\":null,\"loftq_config\":{}}",
         "", "a.to_q", 2},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct kn_err err = {0};
        float scale = 0;
        CHECK_MSG(!scale_of(rows[i].json, rows[i].prefix, rows[i].module, &scale, &err), "%s", err.text);
        CHECK_MSG(scale == rows[i].scale, "%s: %g", rows[i].json, (double)scale);
    }
}

TEST(a_config_that_does_more_is_refused_with_its_key) {
    static const struct {
        const char *json, *says;
    } bad[] = {
        {"{\"use_dora\":true}", "f: use_dora: true is not supported"},
        {"{\"bias\":\"lora_only\"}", "f: bias: lora_only is not supported"},
        {"{\"lora_bias\":true}", "f: lora_bias: "},
        {"{\"modules_to_save\":[\"conv_in\"]}", "f: modules_to_save: "},
        {"{\"init_lora_weights\":\"pissa\"}", "f: init_lora_weights: pissa is not supported"},
        {"{\"peft_type\":\"LOHA\"}", "f: peft_type: LOHA is not supported"},
        {"{\"layer_replication\":[[0,2]]}", "f: layer_replication: "},
        {"{\"target_parameters\":[\"a\"]}", "f: target_parameters: "},
        {"{\"some_later_key\":1}", "f: some_later_key: 1 is not supported"},
        {"{\"r\":5}", "f: a.to_q: rank 4, where r or rank_pattern says 5"},
        {"{\"r\":0}", "f: r: 0 is not between 1 and 4096"},
        {"{\"r\":\"4\"}", "f: r: not a whole number"},
        {"{\"lora_alpha\":1e300}", "f: lora_alpha: "},
        {"{\"use_rslora\":1}", "f: use_rslora: "},
        {"{\"rank_pattern\":[]}", "f: rank_pattern: not an object"},
        {"{\"rank_pattern\":{\"a\":1.5}}", "f: rank_pattern: a: not a number between 1 and 4096"},
        {"{\"rank_pattern\":{\"a\":null}}", "f: rank_pattern: a: not a number"},
        {"{\"alpha_pattern\":{\"a\":\"x\"}}", "f: alpha_pattern: a: not a number"},
        {"{\"alpha_pattern\":{\"a|b\":1}}", "f: alpha_pattern: a|b: a regular expression"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct kn_err err = {0};
        float scale;
        int rc = scale_of(bad[i].json, "", "a.to_q", &scale, &err);
        CHECK_MSG(rc == KN_EUNSUPPORTED || rc == KN_EPARSE, "%s: %d", bad[i].json, rc);
        CHECK_MSG(!strncmp(err.text, bad[i].says, strlen(bad[i].says)), "%s: %s", bad[i].json, err.text);
    }
}

/* A LoRA of rank 2 for one 16 × 16 layer: its metadata (a JSON object), and its keys' beginning and endings. */
struct small {
    const char *metadata, *layer, *down, *up;
    const char *alpha_type; /* NULL: no alpha */
    uint64_t alpha;         /* its bits */
    float first;            /* of up */
};

static void write_small(const char *path, const struct small *s) {
    char header[2048];
    size_t alpha = !s->alpha_type ? 0 : !strcmp(s->alpha_type, "I64") ? 8 : 4;
    int n = snprintf(header, sizeof header, "{\"__metadata__\":%s", s->metadata ? s->metadata : "{}");
    n += snprintf(header + n, sizeof header - (size_t)n,
                  ",\"%s%s\":{\"dtype\":\"F32\",\"shape\":[2,16],\"data_offsets\":[0,128]}"
                  ",\"%s%s\":{\"dtype\":\"F32\",\"shape\":[16,2],\"data_offsets\":[128,256]}",
                  s->layer, s->down, s->layer, s->up);
    if (alpha)
        n += snprintf(header + n, sizeof header - (size_t)n,
                      ",\"%s.alpha\":{\"dtype\":\"%s\",\"shape\":[],\"data_offsets\":[256,%zu]}", s->layer,
                      s->alpha_type, 256 + alpha);
    n += snprintf(header + n, sizeof header - (size_t)n, "}");
    CHECK(n < (int)sizeof header);
    float values[64];
    for (int i = 0; i < 64; i++) values[i] = 0.25f;
    values[32] = s->first;
    uint64_t len = (uint64_t)n;
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(&len, 1, 8, f) == 8 && fwrite(header, 1, (size_t)n, f) == (size_t)n);
    CHECK(fwrite(values, 1, sizeof values, f) == sizeof values && fwrite(&s->alpha, 1, alpha, f) == alpha);
    CHECK(!fclose(f));
}

static void write_text(const char *path, const char *text) {
    struct kn_err err = {0};
    CHECK_MSG(!kn_fs_replace(path, text, strlen(text), false, &err), "%s", err.text);
}

#define LAYER "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
#define META(text) "{\"lora_adapter_metadata\":\"" text "\"}"
#define DOWN ".lora_A.weight", ".lora_B.weight"

TEST(an_alpha_counts_where_programs_look_for_it) {
    static const struct {
        struct small file;
        const char *config; /* adapter_config.json */
        float scale;
    } rows[] = {
        {{NULL, "unet." LAYER, DOWN, NULL, 0, 1}, NULL, 1},
        {{"{\"ss_network_alpha\":\"16\",\"ss_network_dim\":\"2\"}", "unet." LAYER, DOWN, NULL, 0, 1},
         NULL,
         1},
        {{NULL, "unet." LAYER, DOWN, "F32", 0x40800000 /* 4 */, 1}, NULL, 2},
        {{NULL, "unet." LAYER, DOWN, "I64", 6, 1}, NULL, 3},
        {{NULL, "unet." LAYER, DOWN, "I32", 1, 1}, NULL, 0.5f},
        {{META("{\\\"unet.r\\\":2,\\\"unet.lora_alpha\\\":10}"), "unet." LAYER, DOWN, NULL, 0, 1}, NULL, 5},
        {{META(""), "unet." LAYER, DOWN, NULL, 0, 1}, NULL, 1},
        {{META("{\\\"unet.r\\\":2,\\\"unet.lora_alpha\\\":4}"), "unet." LAYER, DOWN, "F32", 0x40800000, 1},
         NULL,
         2},
        {{NULL, "base_model.model." LAYER, DOWN, NULL, 0, 1}, "{\"r\":2,\"lora_alpha\":8}", 4},
        {{NULL, "unet." LAYER, DOWN, NULL, 0, 1}, "{\"r\":2,\"lora_alpha\":8}", 1}, /* not PEFT's file */
    };
    struct kiln_engine *e;
    struct kn_err err = {0};
    setup();
    CHECK(!kiln_engine_create(&(struct kiln_engine_options){.threads = 1}, &e, &err));
    struct kiln_model *m = load(e, KILN_GOLDEN_DIR "/pipelines/sd1");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct kx_lora_file f;
        write_small(in_dir("l.safetensors"), &rows[i].file);
        if (rows[i].config) write_text(in_dir("adapter_config.json"), rows[i].config);
        CHECK_MSG(!kx_lora_open(m, in_dir("l.safetensors"), &f, &err), "row %zu: %s", i, err.text);
        CHECK_INT(f.count, 1);
        CHECK_MSG(f.v[0].scale == rows[i].scale, "row %zu: %g", i, (double)f.v[0].scale);
        kx_lora_close(&f);
        unlink(in_dir("adapter_config.json"));
    }
    kiln_model_destroy(m);
    kiln_engine_destroy(e);
    cleanup();
}

TEST(a_file_that_is_not_understood_is_refused_and_changes_nothing) {
    static const struct {
        struct small file;
        const char *config, *says;
    } rows[] = {
        {{META("{\\\"unet.r\\\":2,\\\"unet.lora_alpha\\\":2}"), "unet." LAYER, DOWN, "F32", 0x40800000, 1},
         NULL,
         LAYER ".alpha: makes a scale of 2, and "},
        {{META("{\\\"unet.use_dora\\\":true}"), "unet." LAYER, DOWN, NULL, 0, 1},
         NULL,
         "bad.safetensors: lora_adapter_metadata: unet.use_dora: true is not supported"},
        {{META("{\\\"unet.r\\\":4}"), "unet." LAYER, DOWN, NULL, 0, 1},
         NULL,
         "lora_adapter_metadata: " LAYER ": rank 2, where unet.r or unet.rank_pattern says 4"},
        {{META("{\\\"r\\\":2}"), "unet." LAYER, DOWN, NULL, 0, 1},
         NULL,
         "lora_adapter_metadata: r: without the network that unet." LAYER},
        {{META("{"), "unet." LAYER, DOWN, NULL, 0, 1}, NULL, "lora_adapter_metadata:1: not a JSON object"},
        {{NULL, "base_model.model." LAYER, DOWN, NULL, 0, 1}, NULL, "adapter_config.json: is not there"},
        {{NULL, "base_model.model." LAYER, DOWN, NULL, 0, 1},
         "{\"r\":2,\"bias\":\"all\"}",
         "adapter_config.json: bias: all is not supported"},
        {{META("{}"), "base_model.model." LAYER, DOWN, NULL, 0, 1}, "{\"r\":2}", "both say how strong it is"},
        {{NULL, "unet." LAYER, ".lora_A.weight", ".lora.down.weight", NULL, 0, 1}, NULL, "is there twice"},
        {{NULL, "unet." LAYER, DOWN, NULL, 0, NAN},
         NULL,
         "bad.safetensors: unet." LAYER ".lora_B.weight: a value is NaN or infinite"},
        {{NULL, "unet." LAYER, DOWN, "F32", 0x7f800000, 1}, NULL, LAYER ".alpha: a value is NaN or infinite"},
        {{NULL, "unet." LAYER, ".lora_A.weight", ".lora_B.weight.x", NULL, 0, 1},
         NULL,
         LAYER ".lora_B.weight.x: not of a kind of LoRA"},
        {{NULL, "text_encoder.text_model.encoder.layers.2.mlp.fc1", DOWN, NULL, 0, 1}, NULL, "no such layer"},
    };
    struct kiln_engine *e;
    struct kn_err err = {0};
    setup();
    CHECK(!kiln_engine_create(&(struct kiln_engine_options){.threads = 1}, &e, &err));
    struct kiln_model *m = load(e, KILN_GOLDEN_DIR "/pipelines/sd1");
    write_lora(in_dir("a.safetensors"), 0, CHANGES, NULL);
    CHECK(!kiln_model_set_loras(m, &(struct kiln_lora){in_dir("a.safetensors"), 1}, 1, &err));
    struct picture before = render(m); /* with a LoRA on, which stays */
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        write_small(in_dir("bad.safetensors"), &rows[i].file);
        if (rows[i].config) write_text(in_dir("adapter_config.json"), rows[i].config);
        int rc = kiln_model_set_loras(m, &(struct kiln_lora){in_dir("bad.safetensors"), 1}, 1, &err);
        CHECK_MSG(rc && strstr(err.text, rows[i].says) && strstr(err.text, dir), "row %zu: %d %s", i, rc,
                  err.text);
        struct picture after = render(m);
        CHECK_MEM(after.rgb, before.rgb, sizeof after.rgb);
        unlink(in_dir("adapter_config.json"));
    }
    kiln_model_destroy(m);
    kiln_engine_destroy(e);
    cleanup();
}

TEST(the_layer_that_an_encoder_never_runs_is_taken_and_changes_nothing) {
    struct kiln_engine *e;
    struct kn_err err = {0};
    struct kx_lora_file f;
    setup();
    CHECK(!kiln_engine_create(&(struct kiln_engine_options){.threads = 1}, &e, &err));
    struct kiln_model *m = load(e, KILN_GOLDEN_DIR "/pipelines/sdxl");
    CHECK_MSG(!kx_lora_open(m, KILN_GOLDEN_DIR "/loras/kohya_sdxl.safetensors", &f, &err), "%s", err.text);
    CHECK_INT(f.unused, 3); /* of te1's layer 2; te2's last one is run, for its pooled state */
    for (int i = 0; i < f.count; i++)
        CHECK_MSG(!f.v[i].part == (f.v[i].network == 1 && strstr(f.v[i].name, "layers_2_")), "%s",
                  f.v[i].name);
    kx_lora_close(&f);
    static const struct small beyond[] = {{NULL, "lora_te1_text_model_encoder_layers_3_mlp_fc1",
                                           ".lora_down.weight", ".lora_up.weight", NULL, 0, 1},
                                          {NULL, "lora_te1_text_model_encoder_layers_2_mlp_fc3",
                                           ".lora_down.weight", ".lora_up.weight", NULL, 0, 1},
                                          {NULL, "lora_te2_text_model_encoder_layers_4_mlp_fc1",
                                           ".lora_down.weight", ".lora_up.weight", NULL, 0, 1}};
    for (size_t i = 0; i < sizeof beyond / sizeof *beyond; i++) {
        write_small(in_dir("x.safetensors"), &beyond[i]);
        CHECK_INT(kx_lora_open(m, in_dir("x.safetensors"), &f, &err), KN_EPARSE);
        CHECK_MSG(strstr(err.text, beyond[i].layer) && strstr(err.text, "no such layer"), "%s", err.text);
        kx_lora_close(&f);
    }
    static const struct small which = {NULL, "base_model.model.encoder.layers.0.mlp.fc1", DOWN, NULL, 0, 1};
    write_small(in_dir("x.safetensors"), &which);
    CHECK_INT(kx_lora_open(m, in_dir("x.safetensors"), &f, &err), KN_EUNSUPPORTED);
    CHECK_MSG(strstr(err.text, "which of the model's 2 text encoders"), "%s", err.text);
    kx_lora_close(&f);
    kiln_model_destroy(m);
    kiln_engine_destroy(e);
    cleanup();
}
