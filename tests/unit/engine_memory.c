/* A model's account of memory: what is told of it before it is loaded, what its networks then plan, and what is kept
 * to where memory is short. */
#include "base/machine.h"
#include "kernels/engine.h"
#include "tests/unit/check.h"

static const char *const pipelines[] = {"pipelines/sd1", "pipelines/sd2", "pipelines/sdxl", "pipelines/v8",
                                        "pipelines/wide"};

static const char *folder(const char *name) {
    static char path[1024];
    snprintf(path, sizeof path, "%s/%s", KILN_GOLDEN_DIR, name);
    return path;
}

static struct kiln_engine *engine(int threads, uint64_t memory) {
    struct kiln_engine_options o = {.threads = threads, .memory_bytes_max = memory};
    struct kiln_engine *e;
    struct kn_err err = {0};
    CHECK_MSG(!kiln_engine_create(&o, &e, &err), "%s", err.text);
    return e;
}

static struct kiln_model *load(struct kiln_engine *e, const char *name) {
    struct kiln_model *m;
    struct kn_err err = {0};
    CHECK_MSG(!kiln_model_load(e, folder(name), &m, &err), "%s", err.text);
    return m;
}

static int on_image(void *ctx, const struct kiln_image *image) {
    *(int *)ctx += image->rgb != NULL;
    return 0;
}

static int render(struct kiln_model *m, int n, uint32_t side, int *done, struct kn_err *err) {
    static char prompt[] = "a red circle", none[] = "";
    struct kn_task t[8];
    struct kiln_callbacks cb = {.ctx = done, .image = on_image};
    CHECK(n <= 8);
    *done = 0;
    for (int i = 0; i < n; i++)
        t[i] = (struct kn_task){.prompt = prompt,
                                .negative = none,
                                .seed = (uint64_t)i,
                                .cfg = 7,
                                .steps = 1,
                                .width = side,
                                .height = side,
                                .sampler = KN_SAMPLER_EULER,
                                .schedule = KN_SCHEDULE_NORMAL,
                                .set = KN_SET_ALL};
    return kiln_render(m, t, n, &cb, err);
}

TEST(what_is_told_of_an_image_is_what_the_networks_plan_or_a_little_more) {
    struct kiln_engine *e = engine(1, 0);
    for (size_t i = 0; i < sizeof pipelines / sizeof *pipelines; i++) {
        struct kiln_model *m = load(e, pipelines[i]);
        struct kn_err err = {0};
        for (int part = 1; part <= 4; part++) {
            uint32_t side = (uint32_t)(part * 8 * m->cfg.size_multiple);
            int latents = (int)side / m->cfg.vae.factor;
            size_t unet, vae;
            struct kiln_memory told;
            CHECK_INT(kiln_model_memory(folder(pipelines[i]), side, side, &told, &err), 0);
            CHECK_INT(kx_unet_bytes(m->unet, 1, latents, latents, m->positions, &unet, &err), 0);
            CHECK_INT(kx_vae_bytes(m->vae, 1, latents, latents, &vae, &err), 0);
            double share = (double)told.image / (double)(unet + vae);
            CHECK_MSG(share >= 1 && share < 2, "%s at %u: told %llu, planned %zu + %zu: %.2f", pipelines[i],
                      side, (unsigned long long)told.image, unet, vae, share);
        }
        kiln_model_destroy(m);
    }
    kiln_engine_destroy(e);
}

TEST(a_description_tells_the_account_for_the_default_size) {
    struct kn_model_info info;
    struct kiln_memory told;
    struct kn_err err = {0};
    CHECK_INT(kiln_model_describe(folder("pipelines/sd1"), NULL, &info, &err), 0);
    CHECK_INT(
        kiln_model_memory(folder("pipelines/sd1"), info.defaults.width, info.defaults.height, &told, &err),
        0);
    CHECK_U64(info.memory_weights, told.weights);
    CHECK_U64(info.memory_image, told.image);
    CHECK(told.weights > 0 && told.image > 0);
    CHECK_U64(kn_model_need(&info, info.defaults.width, 2 * info.defaults.height, 3),
              KN_PROGRAM_BYTES + told.weights + 6 * told.image);
}

TEST(weights_that_do_not_fit_are_refused_before_they_are_read) {
    struct kiln_memory told;
    struct kn_err err = {0};
    struct kiln_model *m;
    CHECK_INT(kiln_model_memory(folder("pipelines/sd1"), 64, 64, &told, &err), 0);
    struct kiln_engine *e = engine(1, KN_PROGRAM_BYTES + told.weights - 1);
    CHECK_INT(kiln_model_load(e, folder("pipelines/sd1"), &m, &err), KN_EOOM);
    CHECK(!m && strstr(err.text, "its weights take") && strstr(err.text, "can be had"));
    kiln_engine_destroy(e);
    /* One byte more, and it fits; but not twice. */
    e = engine(1, KN_PROGRAM_BYTES + told.weights);
    m = load(e, "pipelines/sd1");
    struct kiln_model *second;
    CHECK_INT(kiln_model_load(e, folder("pipelines/sd1"), &second, &err), KN_EOOM);
    kiln_model_destroy(m);
    m = load(e, "pipelines/sd1"); /* what was dropped is free again */
    kiln_model_destroy(m);
    kiln_engine_destroy(e);
}

TEST(a_picture_that_does_not_fit_beside_the_weights_is_refused_and_a_smaller_one_is_made) {
    struct kiln_memory small, large;
    struct kn_err err = {0};
    int done;
    CHECK_INT(kiln_model_memory(folder("pipelines/sd1"), 64, 64, &small, &err), 0);
    CHECK_INT(kiln_model_memory(folder("pipelines/sd1"), 128, 128, &large, &err), 0);
    struct kiln_engine *e = engine(2, KN_PROGRAM_BYTES + small.weights + large.image - 1);
    struct kiln_model *m = load(e, "pipelines/sd1");
    CHECK_INT(render(m, 1, 128, &done, &err), KN_EOOM);
    CHECK(strstr(err.text, "a picture of 128x128 takes") != NULL);
    CHECK_INT(done, 0);
    err = (struct kn_err){0};
    CHECK_MSG(render(m, 1, 64, &done, &err) == 0, "%s", err.text);
    CHECK_INT(done, 1);
    kiln_model_destroy(m);
    kiln_engine_destroy(e);
}

TEST(fewer_images_are_in_work_at_a_time_where_memory_is_short_and_all_are_made) {
    struct kiln_memory told;
    struct kn_err err = {0};
    int done;
    CHECK_INT(kiln_model_memory(folder("pipelines/sd1"), 128, 128, &told, &err), 0);
    /* Room for an image a thread: every thread takes images on a lane of its own. */
    struct kiln_engine *e = engine(4, KN_PROGRAM_BYTES + told.weights + 16 * told.image);
    struct kiln_model *m = load(e, "pipelines/sd1");
    CHECK_INT(kiln_model_minibatch_max(m, 128, 128), 4);
    CHECK_INT(kx_vae_lanes(m->vae, 4, 128 / m->cfg.vae.factor, 128 / m->cfg.vae.factor), 4);
    kiln_model_destroy(m);
    kiln_engine_destroy(e);
    /* Room for one: all threads work on one image after the other. */
    e = engine(4, KN_PROGRAM_BYTES + told.weights + told.image + told.image / 8);
    m = load(e, "pipelines/sd1");
    CHECK_INT(kx_vae_lanes(m->vae, 4, 128 / m->cfg.vae.factor, 128 / m->cfg.vae.factor), 1);
    CHECK_MSG(render(m, 8, 128, &done, &err) == 0, "%s", err.text);
    CHECK_INT(done, 8);
    kiln_model_destroy(m);
    kiln_engine_destroy(e);
}

TEST(an_engine_that_is_told_nothing_may_use_what_is_free) {
    struct kn_machine m;
    struct kiln_engine *e = engine(1, 0);
    uint64_t available, total;
    kn_machine_read("", &m);
    kiln_engine_memory(e, &available, &total);
    CHECK(total > 0 && total <= m.memory_total);
    CHECK(available <= m.memory_total);
    kiln_engine_destroy(e);
}
