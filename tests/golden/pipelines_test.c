/* Whole pipelines against diffusers: every case of pipelines/NAME.json is rendered through kiln.h and each
 * stage compared: token ids exactly, text states and predictions within 1e-4 (‖a − b‖/‖b‖), latents likewise,
 * and the picture within 1/255 at every value. Then what the engine promises of itself: the same bytes alone,
 * in a batch, in another order, on any number of threads. Files: make.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fs.h"
#include "kernels/io/json.h"
#include "kernels/io/safetensors.h"
#include "kernels/kiln.h"
#include "tests/golden/near.h"
#include "tests/unit/check.h"

#define CASES_MAX 32
#define RELATIVE_MAX 1e-4

struct fixture {
    struct kiln_engine *engine;
    struct kiln_model *model;
    struct kx_weights *golden;
    struct kx_json cases; /* {"cases": […]} */
    struct kn_task tasks[CASES_MAX];
    int count;
};

static const char *string_of(json_object *o, const char *key) {
    json_object *v = NULL;
    CHECK(json_object_object_get_ex(o, key, &v));
    return json_object_get_string(v);
}

static double number_of(json_object *o, const char *key) {
    json_object *v = NULL;
    CHECK(json_object_object_get_ex(o, key, &v));
    return json_object_get_double(v);
}

static void read_cases(struct fixture *f, const char *path) {
    f->cases.o = json_object_from_file(path);
    CHECK(f->cases.o && json_object_is_type(f->cases.o, json_type_array));
    f->count = (int)json_object_array_length(f->cases.o);
    CHECK(f->count > 0 && f->count <= CASES_MAX);
    for (int i = 0; i < f->count; i++) {
        json_object *o = json_object_array_get_idx(f->cases.o, (size_t)i), *seed;
        CHECK(json_object_object_get_ex(o, "seed", &seed));
        struct kn_task *t = &f->tasks[i];
        struct kn_err err = {0};
        *t = (struct kn_task){.prompt = (char *)(uintptr_t)string_of(o, "prompt"),
                              .negative = (char *)(uintptr_t)string_of(o, "negative"),
                              .seed = json_object_get_uint64(seed),
                              .cfg = (float)number_of(o, "cfg"),
                              .steps = (uint32_t)number_of(o, "steps"),
                              .width = (uint32_t)number_of(o, "width"),
                              .height = (uint32_t)number_of(o, "height"),
                              .set = KN_SET_ALL};
        CHECK(!kn_sampler_parse(string_of(o, "sampler"), &t->sampler, &err));
        CHECK(!kn_schedule_parse(string_of(o, "schedule"), &t->schedule, &err));
    }
}

static void fixture_init(struct fixture *f, const char *name) {
    struct kn_err err = {0};
    char path[1024];
    *f = (struct fixture){0};
    struct kiln_engine_options opt = {.device = KILN_DEVICE_CPU, .threads = 2};
    CHECK_MSG(!kiln_engine_create(&opt, &f->engine, &err), "%s", err.text);
    snprintf(path, sizeof path, "%s/pipelines/%s", KILN_GOLDEN_DIR, name);
    CHECK_MSG(!kiln_model_load(f->engine, path, &f->model, &err), "%s", err.text);
    CHECK_MSG(!kx_weights_open(KILN_GOLDEN_DIR "/pipelines", name, &f->golden, &err), "%s", err.text);
    snprintf(path, sizeof path, "%s/pipelines/%s.json", KILN_GOLDEN_DIR, name);
    read_cases(f, path);
}

static void fixture_fini(struct fixture *f) {
    json_object_put(f->cases.o);
    kx_weights_close(f->golden);
    kiln_model_destroy(f->model);
    kiln_engine_destroy(f->engine);
}

/* ---- stage by stage ---- */

struct comparison {
    const struct fixture *f;
    int index, wrong, seen;
    double text, unet, latents, noise, image; /* the worst of each stage */
};

static void compare(void *ctx, const char *name, const void *data, const int64_t *shape, int ndim) {
    struct comparison *c = ctx;
    char key[80];
    snprintf(key, sizeof key, "%02d.%s", c->index, name);
    const struct kx_weight *w = kx_weights_find(c->f->golden, key);
    if (!w && c->index >= 3 && (!strncmp(name, "text", 4) || !strncmp(name, "unet", 4)))
        return; /* not stored */
    if (!w) {
        fprintf(stderr, "%s: diffusers has no such tensor\n", key);
        c->wrong++;
        return;
    }
    c->seen++;
    size_t n = 1;
    bool same = w->ndim == ndim;
    for (int i = 0; i < ndim && same; i++) {
        same = w->shape[i] == shape[i];
        n *= (size_t)shape[i];
    }
    double d = INFINITY;
    if (same && w->dtype == KX_I32) {
        d = memcmp(data, w->data, n * sizeof(int32_t)) ? INFINITY : 0;
    } else if (same) {
        float *want = malloc(n * sizeof *want);
        if (want && !kx_weight_f32(w, want)) {
            d = relative(data, want, n);
            if (!strcmp(name, "image")) {
                const float *got = data;
                double worst = 0;
                for (size_t i = 0; i < n; i++) worst = fmax(worst, fabs((double)got[i] - (double)want[i]));
                c->image = fmax(c->image, worst);
                if (!(worst <= 1.0 / 255)) d = INFINITY;
            }
        }
        free(want);
    }
    double *stage = !strncmp(name, "text", 4)     ? &c->text
                    : !strncmp(name, "unet", 4)   ? &c->unet
                    : !strncmp(name, "noise", 5)  ? &c->noise
                    : !strncmp(name, "latent", 6) ? &c->latents
                                                  : NULL;
    if (stage) *stage = fmax(*stage, d);
    if (!(d <= (stage ? RELATIVE_MAX : 1e-2))) {
        fprintf(stderr, "%s: differs by %.3g\n", key, d);
        c->wrong++;
    }
}

static int ignore_image(void *ctx, const struct kiln_image *im) {
    (void)ctx;
    return im->status;
}

static void check_stages(const char *name) {
    struct fixture f;
    fixture_init(&f, name);
    struct comparison c = {.f = &f};
    for (c.index = 0; c.index < f.count; c.index++) {
        struct kn_err err = {0};
        struct kiln_callbacks cb = {.ctx = &c, .image = ignore_image, .dump = compare};
        int rc = kiln_render(f.model, &f.tasks[c.index], 1, &cb, &err);
        CHECK_MSG(!rc, "case %d: %s", c.index, err.text);
    }
    printf(
        "%s: %d cases, %d tensors; worst: text %.2g, noise %.2g, unet %.2g, latents %.2g, image %.2g/255\n",
        name, f.count, c.seen, c.text, c.noise, c.unet, c.latents, 255 * c.image);
    CHECK_INT(c.wrong, 0);
    CHECK_INT(c.seen, kx_weights_count(f.golden));
    fixture_fini(&f);
}

TEST(sd1_like_pipeline_agrees_at_every_stage) {
    check_stages("sd1");
}

TEST(v_prediction_pipeline_with_8_latent_channels_agrees_at_every_stage) {
    check_stages("v8");
}

TEST(sharded_zero_snr_pipeline_agrees_at_every_stage) {
    check_stages("wide");
}

TEST(sd2_like_pipeline_agrees_at_every_stage) {
    check_stages("sd2");
}

TEST(sdxl_like_pipeline_agrees_at_every_stage) {
    check_stages("sdxl");
}

/* ---- batches ---- */

struct pictures {
    uint8_t *rgb[CASES_MAX];
    size_t bytes;
    int count;
};

static int keep(void *ctx, const struct kiln_image *im) {
    struct pictures *p = ctx;
    if (im->status || im->index != p->count) return 1;
    p->rgb[p->count] = malloc(p->bytes);
    if (!p->rgb[p->count]) return 1;
    memcpy(p->rgb[p->count++], im->rgb, p->bytes);
    return 0;
}

static void free_pictures(struct pictures *p) {
    for (int i = 0; i < p->count; i++) free(p->rgb[i]);
}

/* Different prompts, seeds, guidance (with none among them), one sampler: batch, reversed, and each alone. */
static void check_batch(struct fixture *f, enum kn_sampler sampler, enum kn_schedule schedule) {
    enum { N = 6 };
    struct kn_task t[N], back[N];
    static const float cfg[N] = {7, 1, 3.5f, 12, 0.5f, 7};
    for (int i = 0; i < N; i++) {
        t[i] = f->tasks[i % f->count];
        t[i].width = f->tasks[0].width;
        t[i].height = f->tasks[0].height;
        t[i].steps = 4;
        t[i].sampler = sampler;
        t[i].schedule = schedule;
        t[i].cfg = cfg[i];
        t[i].seed = (uint64_t)(1000 + i);
    }
    for (int i = 0; i < N; i++) back[i] = t[N - 1 - i];
    struct kn_err err = {0};
    struct pictures all = {.bytes = (size_t)t->width * t->height * 3}, reversed = {.bytes = all.bytes};
    CHECK_MSG(!kiln_render(f->model, t, N, &(struct kiln_callbacks){.ctx = &all, .image = keep}, &err), "%s",
              err.text);
    CHECK_MSG(
        !kiln_render(f->model, back, N, &(struct kiln_callbacks){.ctx = &reversed, .image = keep}, &err),
        "%s", err.text);
    for (int i = 0; i < N; i++) {
        struct pictures alone = {.bytes = all.bytes};
        CHECK_MSG(
            !kiln_render(f->model, &t[i], 1, &(struct kiln_callbacks){.ctx = &alone, .image = keep}, &err),
            "%s", err.text);
        CHECK_MEM(all.rgb[i], alone.rgb[0], all.bytes);
        CHECK_MEM(reversed.rgb[N - 1 - i], alone.rgb[0], all.bytes);
        free_pictures(&alone);
    }
    CHECK(memcmp(all.rgb[0], all.rgb[5], all.bytes)); /* another seed is another picture */
    free_pictures(&all);
    free_pictures(&reversed);
}

TEST(same_bytes_alone_in_a_batch_and_in_another_order) {
    static const char *const names[] = {"sd1", "v8", "wide", "sd2", "sdxl"};
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        struct fixture f;
        fixture_init(&f, names[k]);
        for (int s = KN_SAMPLER_DDIM; s <= KN_SAMPLER_DPMPP_2M; s++) {
            if (k && s != KN_SAMPLER_EULER_A)
                continue; /* every sampler once, every network with one that draws noise */
            check_batch(&f, (enum kn_sampler)s, KN_SCHEDULE_NORMAL);
            if (kn_schedule_fits((enum kn_sampler)s, KN_SCHEDULE_KARRAS))
                check_batch(&f, (enum kn_sampler)s, KN_SCHEDULE_KARRAS);
        }
        fixture_fini(&f);
    }
}

TEST(same_bytes_with_1_2_and_4_threads_alone_and_at_every_place_of_a_batch) {
    enum { N = 5 };
    static const char *const names[] = {"sd1", "v8", "wide", "sd2", "sdxl"};
    static const int threads[] = {1, 2, 4};
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        struct fixture f;
        fixture_init(&f, names[k]);
        struct kn_err err = {0};
        struct kn_task t[N];
        for (int i = 0; i < N; i++) {
            t[i] = f.tasks[0];
            t[i].prompt = f.tasks[i % f.count].prompt;
            t[i].seed = (uint64_t)(50 + i);
            t[i].cfg = i == 2 ? 1 : 4 + (float)i; /* one without guidance: an odd number of rows */
            t[i].steps = 2;
        }
        struct pictures want = {.bytes = (size_t)t->width * t->height * 3};
        CHECK(!kiln_render(f.model, t, N, &(struct kiln_callbacks){.ctx = &want, .image = keep}, &err));
        for (int q = 0; q < 3; q++) {
            struct kiln_engine *e;
            struct kiln_model *m;
            char path[1024];
            snprintf(path, sizeof path, "%s/pipelines/%s", KILN_GOLDEN_DIR, names[k]);
            CHECK(!kiln_engine_create(&(struct kiln_engine_options){.threads = threads[q]}, &e, &err));
            CHECK_STR(kiln_engine_backend(e), kiln_engine_backend(f.engine));
            CHECK_MSG(!kiln_model_load(e, path, &m, &err), "%s", err.text);
            for (int first = 0; first < N; first++) /* batches of every size, each task at every place */
                for (int n = 1; first + n <= N; n++) {
                    struct pictures got = {.bytes = want.bytes};
                    struct kiln_callbacks cb = {.ctx = &got, .image = keep};
                    CHECK_MSG(!kiln_render(m, t + first, n, &cb, &err), "%s", err.text);
                    for (int i = 0; i < n; i++) CHECK_MEM(got.rgb[i], want.rgb[first + i], want.bytes);
                    free_pictures(&got);
                }
            kiln_model_destroy(m);
            kiln_engine_destroy(e);
        }
        free_pictures(&want);
        fixture_fini(&f);
    }
}

/* ---- a render's edges ---- */

static int stop_at_two(void *ctx, int step, int steps) {
    (void)ctx, (void)steps;
    return step == 2;
}

TEST(engine_ends_a_render_when_the_step_callback_says_so) {
    struct fixture f;
    fixture_init(&f, "sd1");
    struct kn_err err = {0};
    struct pictures p = {.bytes = (size_t)f.tasks->width * f.tasks->height * 3};
    struct kiln_callbacks cb = {.ctx = &p, .image = keep, .step = stop_at_two};
    CHECK_INT(kiln_render(f.model, f.tasks, 1, &cb, &err), KN_ECANCELED);
    CHECK_INT(p.count, 0);
    fixture_fini(&f);
}

/* ---- pictures that are none */

static const char *const folder_files[] = {"model_index.json",
                                           "scheduler/scheduler_config.json",
                                           "text_encoder/config.json",
                                           "text_encoder/model.safetensors",
                                           "tokenizer/merges.txt",
                                           "tokenizer/special_tokens_map.json",
                                           "tokenizer/tokenizer_config.json",
                                           "tokenizer/vocab.json",
                                           "unet/config.json",
                                           "unet/diffusion_pytorch_model.safetensors",
                                           "vae/config.json",
                                           "vae/diffusion_pytorch_model.safetensors"};

/* The weights in `b`, written to the file `to` in f32, with every value of the tensors named so made `value`. */
static void write_spoiled(const struct kn_buf *b, const char *to, const char *prefix, float value) {
    struct kx_weights *w;
    struct kx_dump *d;
    struct kn_err err = {0};
    int spoiled = 0;
    CHECK_MSG(!kx_weights_parse(b->data, b->len, to, &w, &err), "%s", err.text);
    CHECK(!kx_dump_create(&d));
    for (size_t k = 0; k < kx_weights_count(w); k++) {
        const struct kx_weight *t = kx_weights_at(w, k);
        float *v = malloc(2 * t->bytes + 1); /* from halves */
        CHECK(v && !kx_weight_f32(t, v));
        bool is_spoiled = !strncmp(t->name, prefix, strlen(prefix));
        for (size_t q = 0; q < t->bytes / 2 && is_spoiled; q++) v[q] = value;
        spoiled += is_spoiled;
        CHECK(!kx_dump_add(d, t->name, KX_F32, t->shape, t->ndim, v));
        free(v);
    }
    CHECK(spoiled > 0);
    CHECK_MSG(!kx_dump_write(d, to, &err), "%s", err.text);
    kx_dump_destroy(d);
    kx_weights_close(w);
}

/* Copies sd1 to DIR with every value of the tensors named so in `part` made `value`. */
static void spoiled_copy(const char *dir, const char *part, const char *prefix, float value) {
    for (size_t i = 0; i < sizeof folder_files / sizeof *folder_files; i++) {
        char from[1024], to[1024];
        struct kn_buf b;
        struct kn_err err = {0};
        kn_buf_init(&b, 1 << 24);
        snprintf(from, sizeof from, "%s/pipelines/sd1/%s", KILN_GOLDEN_DIR, folder_files[i]);
        snprintf(to, sizeof to, "%s/%s", dir, folder_files[i]);
        CHECK_MSG(!kn_fs_read(from, &b, &err), "%s", err.text);
        *strrchr(to, '/') = 0;
        CHECK_MSG(!kn_fs_mkdirs(to, 0700, &err), "%s", err.text);
        to[strlen(to)] = '/';
        if (!strncmp(folder_files[i], part, strlen(part)) && strstr(folder_files[i], ".safetensors"))
            write_spoiled(&b, to, prefix, value);
        else
            CHECK_MSG(!kn_fs_replace(to, b.data, b.len, false, &err), "%s", err.text);
        kn_buf_fini(&b);
    }
}

static void remove_copy(const char *dir) {
    static const char *const folders[] = {"scheduler", "text_encoder", "tokenizer", "unet", "vae", ""};
    char path[1024];
    for (size_t i = 0; i < sizeof folder_files / sizeof *folder_files; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, folder_files[i]);
        unlink(path);
    }
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, folders[i]);
        rmdir(path);
    }
}

struct outcome {
    int count, status[3], step[3];
    bool flat[3], picture[3];
    uint8_t first[3];
};

static int note_outcome(void *ctx, const struct kiln_image *im) {
    struct outcome *o = ctx;
    o->status[o->count] = im->status;
    o->step[o->count] = im->step;
    o->flat[o->count] = im->flat;
    o->picture[o->count] = im->rgb != NULL;
    if (im->rgb) o->first[o->count] = im->rgb[0];
    o->count++;
    return 0;
}

/* Renders n pictures of 3 steps with the spoiled model. */
static void render_spoiled(const char *part, const char *prefix, float value, int n, struct outcome *out) {
    char dir[] = "/tmp/kiln-golden-XXXXXX";
    struct fixture f;
    struct kiln_model *m;
    struct kn_err err = {0};
    CHECK(mkdtemp(dir));
    spoiled_copy(dir, part, prefix, value);
    fixture_init(&f, "sd1");
    CHECK_MSG(!kiln_model_load(f.engine, dir, &m, &err), "%s", err.text);
    struct kn_task t[3] = {f.tasks[0], f.tasks[0], f.tasks[0]};
    for (int i = 0; i < 3; i++) {
        t[i].steps = 3;
        t[i].sampler = KN_SAMPLER_EULER;
        t[i].schedule = KN_SCHEDULE_NORMAL;
    }
    *out = (struct outcome){0};
    CHECK_MSG(!kiln_render(m, t, n, &(struct kiln_callbacks){.ctx = out, .image = note_outcome}, &err), "%s",
              err.text);
    CHECK_INT(out->count, n);
    kiln_model_destroy(m);
    fixture_fini(&f);
    remove_copy(dir);
}

TEST(engine_names_the_step_at_which_a_picture_is_not_a_number) {
    struct outcome o;
    for (int n = 1; n <= 3; n++) {
        render_spoiled("unet/", "conv_out.", 3e38f, n, &o); /* finite weights, whose sums are not */
        for (int i = 0; i < n; i++) CHECK(o.status[i] == KN_ENAN && o.step[i] == 0 && !o.picture[i]);
        render_spoiled("vae/", "decoder.conv_norm_out.weight", 3e38f, n, &o);
        for (int i = 0; i < n; i++) CHECK(o.status[i] == KN_ENAN && o.step[i] == 3 && !o.picture[i]);
    }
}

TEST(engine_flags_a_flat_picture) {
    struct outcome o;
    render_spoiled("vae/", "decoder.conv_out.", 0, 2, &o);
    for (int i = 0; i < 2; i++) CHECK(!o.status[i] && o.flat[i] && o.picture[i] && o.first[i] == 128);
    render_spoiled("vae/", "decoder.conv_out.bias", 0, 2, &o);
    for (int i = 0; i < 2; i++) CHECK(!o.status[i] && !o.flat[i]);
}

struct kept {
    uint8_t rgb[4][64 * 64 * 3];
    int count;
};

static int keep_image(void *ctx, const struct kiln_image *im) {
    struct kept *k = ctx;
    CHECK(im->rgb && im->index == k->count && k->count < 4);
    memcpy(k->rgb[k->count++], im->rgb, (size_t)im->task->width * im->task->height * 3);
    return 0;
}

TEST(engine_mixes_samplers_steps_and_guidance_in_one_batch) {
    static struct kept together, alone;
    struct fixture f;
    fixture_init(&f, "sd1");
    struct kn_err err = {0};
    struct kn_task t[4] = {f.tasks[0], f.tasks[0], f.tasks[0], f.tasks[0]};
    t[0].sampler = KN_SAMPLER_EULER_A;
    t[1].sampler = KN_SAMPLER_DPMPP_2M;
    t[1].steps += 3;
    t[2].sampler = KN_SAMPLER_PNDM;
    t[2].cfg = 1;
    t[3].sampler = KN_SAMPLER_DDIM;
    t[3].steps = 2;
    t[3].seed++;
    for (int i = 0; i < 4; i++) t[i].schedule = KN_SCHEDULE_NORMAL;
    CHECK(t[0].width * t[0].height * 3 <= sizeof together.rgb[0]);
    CHECK_MSG(
        !kiln_render(f.model, t, 4, &(struct kiln_callbacks){.ctx = &together, .image = keep_image}, &err),
        "%s", err.text);
    CHECK_INT(together.count, 4);
    for (int i = 0; i < 4; i++) {
        alone.count = 0;
        CHECK_MSG(!kiln_render(f.model, &t[i], 1,
                               &(struct kiln_callbacks){.ctx = &alone, .image = keep_image}, &err),
                  "%s", err.text);
        CHECK_MEM(together.rgb[i], alone.rgb[0], t[i].width * t[i].height * 3);
    }
    fixture_fini(&f);
}

TEST(engine_refuses_tasks_that_cannot_share_a_batch) {
    struct fixture f;
    fixture_init(&f, "sd1");
    struct kn_err err = {0};
    struct kn_task t[2] = {f.tasks[0], f.tasks[0]};
    struct kiln_callbacks cb = {.image = ignore_image};
    t[1].height += 8;
    CHECK_INT(kiln_render(f.model, t, 2, &cb, &err), KN_EINVAL);
    t[1] = t[0];
    t[1].set &= ~(unsigned)KN_SET_SEED;
    CHECK_INT(kiln_render(f.model, t, 2, &cb, &err), KN_EINVAL);
    t[0].width += 1;
    CHECK_INT(kiln_render(f.model, t, 1, &cb, &err), KN_EINVAL);
    fixture_fini(&f);
}

TEST(engine_describes_the_folders_own_defaults_and_a_stable_hash) {
    struct kn_model_info a, b;
    struct kn_err err = {0};
    CHECK_MSG(!kiln_model_describe(KILN_GOLDEN_DIR "/pipelines/sd1", NULL, &a, &err), "%s", err.text);
    CHECK(!kiln_model_describe(KILN_GOLDEN_DIR "/pipelines/../pipelines/sd1/", NULL, &b, &err));
    CHECK_MEM(a.sha256, b.sha256, sizeof a.sha256);
    CHECK_STR(a.name, "sd1");
    CHECK_INT(a.defaults.sampler, KN_SAMPLER_PNDM);
    CHECK_INT(a.defaults.schedule, KN_SCHEDULE_NORMAL);
    CHECK(a.defaults.steps == 20 && a.defaults.cfg == 7 && a.defaults.width == 16 && a.defaults.height == 16);
    CHECK_INT(a.size_multiple, 4);
    CHECK(!kiln_model_describe(KILN_GOLDEN_DIR "/pipelines/wide", NULL, &b, &err));
    CHECK(memcmp(a.sha256, b.sha256, sizeof a.sha256));
    CHECK_INT(b.defaults.sampler, KN_SAMPLER_EULER);
    CHECK_INT(kiln_model_describe(KILN_GOLDEN_DIR "/pipelines/none", NULL, &b, &err), KN_ENOENT);
    CHECK(strstr(err.text, "pipelines/none"));
}
