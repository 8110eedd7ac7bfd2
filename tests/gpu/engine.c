/* The whole engine on a GPU through kiln.h: its pictures beside the CPU's, the same bytes in every batch, the
 * stages on three threads, and what happens when memory is short, the device fails or a number is none. On
 * the shim with the small golden pipelines; on a device with models/tiny as well. */
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <unistd.h>

#include "kernels/cuda/cuda.h"
#include "kernels/io/safetensors.h"
#include "kernels/kiln.h"
#include "tests/gpu/gpu.h"
#ifdef KX_SHIM
#include "tests/gpu/shim/shim.h"
#endif

#define IMAGES_MAX 32
#define PIXELS_MAX (128 * 128)

struct fixture {
    struct kiln_engine *engine;
    struct kiln_model *model;
    struct kn_model_info info;
};

static void open_engine(struct fixture *f, enum kiln_device device, const char *dir,
                        struct kiln_engine_options o) {
    struct kn_err err = {0};
    *f = (struct fixture){0};
    o.device = device;
    o.threads = 2;
    CHECK_MSG(!kiln_model_describe(dir, NULL, &f->info, &err), "%s", err.text);
    CHECK_MSG(!kiln_engine_create(&o, &f->engine, &err), "%s", err.text);
    CHECK_MSG(!kiln_model_load(f->engine, dir, &f->model, &err), "%s", err.text);
}

static void close_engine(struct fixture *f) {
    kiln_model_destroy(f->model);
    kiln_engine_destroy(f->engine);
}

static const char *pipeline(const char *name) {
    static char path[1024];
    snprintf(path, sizeof path, "%s/pipelines/%s", KILN_GOLDEN_DIR, name);
    return path;
}

/* Different prompts, seeds and guidance; every third without. */
static struct kn_task task(const struct fixture *f, int i, uint32_t steps) {
    static const char *const prompts[] = {"a red circle", "a blue square on green", "two cats", "",
                                          "a red circle"};
    struct kn_task t = {.prompt = (char *)(uintptr_t)prompts[i % 5],
                        .negative = (char *)(uintptr_t)(i % 2 ? "dark" : ""),
                        .seed = (uint64_t)(100 + i),
                        .cfg = i % 3 == 2 ? 1 : 2.0f + (float)i,
                        .steps = steps,
                        .width = f->info.defaults.width,
                        .height = f->info.defaults.height,
                        .sampler = KN_SAMPLER_EULER,
                        .schedule = KN_SCHEDULE_NORMAL,
                        .set = KN_SET_ALL};
    return t;
}

struct pictures {
    uint8_t rgb[IMAGES_MAX][3 * PIXELS_MAX];
    int status[IMAGES_MAX], step[IMAGES_MAX];
    int count, steps, cancel_at;
};

static int on_image(void *ctx, const struct kiln_image *im) {
    struct pictures *p = ctx;
    CHECK(p->count < IMAGES_MAX && im->task->width * im->task->height <= PIXELS_MAX);
    p->status[p->count] = im->status;
    p->step[p->count] = im->step;
    if (im->rgb) memcpy(p->rgb[p->count], im->rgb, (size_t)im->task->width * im->task->height * 3);
    p->count++;
    return 0;
}

static int on_step(void *ctx, int step, int steps) {
    struct pictures *p = ctx;
    CHECK_INT(step, p->steps + 1);
    CHECK(step <= steps);
    p->steps++;
    return p->cancel_at && step == p->cancel_at;
}

static int try_render(struct fixture *f, const struct kn_task *t, int n, struct pictures *p,
                      struct kn_err *err) {
    p->count = p->steps = 0;
    return kiln_render(f->model, t, n,
                       &(struct kiln_callbacks){.ctx = p, .image = on_image, .step = n > 1 ? NULL : on_step},
                       err);
}

static void render(struct fixture *f, const struct kn_task *t, int n, struct pictures *p) {
    struct kn_err err = {0};
    CHECK_MSG(!try_render(f, t, n, p, &err), "%s", err.text);
    CHECK_INT(p->count, n);
    for (int i = 0; i < n; i++) CHECK_INT(p->status[i], 0);
}

static size_t bytes_of(const struct kn_task *t) {
    return (size_t)t->width * t->height * 3;
}

/* Decibels between two pictures. */
static double psnr(const uint8_t *a, const uint8_t *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return sum > 0 ? 10 * log10(255.0 * 255.0 * (double)n / sum) : 999;
}

/* `dir` on both devices, with the last `count` samplers. */
static void compare(const char *dir, int count, uint32_t steps, double least_db) {
    static struct pictures gpu, cpu;
    struct fixture g, c;
    open_engine(&g, KILN_DEVICE_CUDA, dir, (struct kiln_engine_options){0});
    open_engine(&c, KILN_DEVICE_CPU, dir, (struct kiln_engine_options){0});
    struct kn_task t[5];
    double worst = 999;
    for (int i = 0; i < count; i++) {
        t[i] = task(&g, i, steps);
        t[i].sampler = kn_samplers[KN_SAMPLER_COUNT - 1 - i];
    }
    render(&g, t, count, &gpu);
    render(&c, t, count, &cpu);
    for (int i = 0; i < count; i++) {
        double db = psnr(gpu.rgb[i], cpu.rgb[i], bytes_of(&t[i]));
        if (db < worst) worst = db;
        CHECK_MSG(db >= least_db, "%s, %s: %.1f dB from the CPU's picture, %.0f wanted", g.info.name,
                  kn_sampler_name(t[i].sampler), db, least_db);
    }
    printf("%s: %.1f dB at worst\n", g.info.name, worst);
    close_engine(&g);
    close_engine(&c);
}

/* With random weights each step makes what rounding did larger: few steps where that is much (v-prediction).
 */
TEST(pictures_are_those_of_the_cpu) {
    static const struct {
        const char *name;
        uint32_t steps;
        double least_db;
    } all[] = {{"sd1", 4, 50}, {"sd2", 2, 42}, {"sdxl", 4, 48}, {"v8", 4, 50}, {"wide", 4, 46}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        compare(pipeline(all[i].name), i == 0 || gpu_real() ? 5 : 2, all[i].steps, all[i].least_db);
}

TEST(the_shipped_models_pictures_are_those_of_the_cpu) {
    if (!gpu_real()) SKIP("on a device: minutes on the shim");
    compare(KILN_MODEL_DIR, 5, 16, 40);
}

/* Promise 3. */
static void same_bytes(const char *dir, uint32_t steps, struct kiln_engine_options o) {
    static struct pictures alone, p;
    struct fixture f;
    open_engine(&f, KILN_DEVICE_CUDA, dir, o);
    int most = gpu_real() ? 32 : 8;
    struct kn_task t[IMAGES_MAX], other[IMAGES_MAX];
    static uint8_t want[IMAGES_MAX][3 * PIXELS_MAX];
    for (int i = 0; i < most; i++) {
        t[i] = task(&f, i, steps);
        if (i % 4 == 3) t[i].sampler = KN_SAMPLER_EULER_A;
        render(&f, &t[i], 1, &alone);
        memcpy(want[i], alone.rgb[0], bytes_of(&t[i]));
    }
    static const int sizes[] = {2, 3, 8, 32};
    for (size_t s = 0; s < 4 && sizes[s] <= most; s++)
        for (int shift = !gpu_real() && sizes[s] == 8; shift < 2;
             shift++) { /* at other places, in another order */
            int n = sizes[s], from[IMAGES_MAX];
            for (int i = 0; i < n; i++) {
                from[i] = shift ? most - 1 - (i + 1) % n : i;
                other[i] = t[from[i]];
            }
            render(&f, other, n, &p);
            for (int i = 0; i < n; i++)
                CHECK_MSG(!memcmp(p.rgb[i], want[from[i]], bytes_of(&t[i])),
                          "image %d is another at place %d of %d", from[i], i, n);
        }
    close_engine(&f);
}

TEST(an_image_has_the_same_bytes_in_every_batch) {
    same_bytes(pipeline("sd1"), 2, (struct kiln_engine_options){0});
    same_bytes(pipeline("sdxl"), 1, (struct kiln_engine_options){.precision = KILN_PRECISION_BF16});
    if (gpu_real()) {
        same_bytes(pipeline("sd1"), 2, (struct kiln_engine_options){.own_kernels = true});
        same_bytes(KILN_MODEL_DIR, 8, (struct kiln_engine_options){0});
    }
}

/* The same shape of batch with more different texts: their keys and values lie elsewhere then. */
TEST(what_was_recorded_before_memory_moved_is_recorded_again) {
    static struct pictures same, other, alone;
    struct fixture f;
    open_engine(&f, KILN_DEVICE_CUDA, pipeline("sd1"), (struct kiln_engine_options){0});
    struct kn_task t[4];
    for (int i = 0; i < 4; i++) {
        t[i] = task(&f, i < 2 ? 0 : i - 2, 3); /* the first step is not recorded yet */
        t[i].cfg = 3;
    }
    render(&f, t, 2, &same);
    render(&f, t + 2, 2, &other);
    for (int i = 0; i < 4; i++) {
        render(&f, &t[i], 1, &alone);
        CHECK_MEM(alone.rgb[0], i < 2 ? same.rgb[i] : other.rgb[i - 2], bytes_of(t));
    }
    close_engine(&f);
}

TEST(images_of_other_samplers_and_steps_share_a_batch) {
    static struct pictures together, alone;
    struct fixture f;
    open_engine(&f, KILN_DEVICE_CUDA, pipeline("sd1"), (struct kiln_engine_options){0});
    struct kn_task t[5];
    for (int i = 0; i < 5; i++) {
        t[i] = task(&f, i, (uint32_t)(2 + i));
        t[i].sampler = (enum kn_sampler)(KN_SAMPLER_DDIM + i);
    }
    render(&f, t, 5, &together);
    for (int i = 0; i < 5; i++) {
        render(&f, &t[i], 1, &alone);
        CHECK_MEM(together.rgb[i], alone.rgb[0], bytes_of(&t[i]));
    }
    close_engine(&f);
}

TEST(steps_are_reported_in_order_and_a_cancelled_render_leaves_the_engine_well) {
    static struct pictures p;
    struct fixture f;
    struct kn_err err = {0};
    open_engine(&f, KILN_DEVICE_CUDA, pipeline("sd1"), (struct kiln_engine_options){0});
    struct kn_task t = task(&f, 0, 5);
    p.cancel_at = 2;
    CHECK_INT(try_render(&f, &t, 1, &p, &err), KN_ECANCELED);
    CHECK(p.count == 0 && p.steps == 2);
    p.cancel_at = 0;
    render(&f, &t, 1, &p);
    CHECK_INT(p.steps, 5);
    close_engine(&f);
}

TEST(a_guidance_beyond_all_numbers_fails_its_image_alone_at_its_step) {
    static struct pictures p, alone;
    struct fixture f;
    open_engine(&f, KILN_DEVICE_CUDA, pipeline("sd1"), (struct kiln_engine_options){0});
    struct kn_err err = {0};
    struct kn_task t[3] = {task(&f, 0, 3), task(&f, 1, 3), task(&f, 4, 3)};
    t[1].cfg = 3.4e38f;
    CHECK_MSG(!try_render(&f, t, 3, &p, &err), "%s", err.text);
    CHECK_INT(p.count, 3);
    CHECK(p.status[0] == 0 && p.status[1] == KN_ENAN && p.status[2] == 0);
    CHECK_MSG(p.step[1] <= 1, "seen at step %d", p.step[1]);
    for (int i = 0; i < 3; i += 2) {
        render(&f, &t[i], 1, &alone);
        CHECK_MEM(p.rgb[i], alone.rgb[0], bytes_of(t));
    }
    close_engine(&f);
}

TEST(the_idle_share_is_measured_on_the_device) {
    static struct pictures p;
    struct fixture f;
    struct kiln_busy busy;
    open_engine(&f, KILN_DEVICE_CUDA, pipeline("sd1"), (struct kiln_engine_options){0});
    kiln_engine_busy(f.engine, &busy);
    struct kn_task t = task(&f, 0, 3);
    render(&f, &t, 1, &p);
    kiln_engine_busy(f.engine, &busy);
    CHECK_MSG(busy.busy_ms > 0 && busy.busy_ms <= busy.span_ms, "%g of %g ms", busy.busy_ms, busy.span_ms);
    kiln_engine_busy(f.engine, &busy);
    CHECK(busy.busy_ms == 0 && busy.span_ms == 0);
    close_engine(&f);
}

TEST(a_calibrated_model_computes_with_eight_bits_and_near_enough) {
    static struct pictures wide, narrow, again;
    struct fixture f;
    struct kn_err err = {0};
    char dir[] = "/tmp/kn-fp8-XXXXXX", command[2048], model[64];
    CHECK(mkdtemp(dir));
    snprintf(model, sizeof model, "%s/sd1", dir);
    snprintf(command, sizeof command, "cp -r '%s' '%s'", pipeline("sd1"), model);
    CHECK_INT(system(command), 0);
    struct kiln_engine_options o = {.device = KILN_DEVICE_CUDA, .precision = KILN_PRECISION_FP8};
    struct kn_model_info before;
    CHECK(!kiln_model_describe(model, NULL, &before, &err));

    struct kiln_engine *e;
    struct kiln_model *m;
    CHECK_MSG(!kiln_engine_create(&o, &e, &err), "%s", err.text);
    CHECK_INT(kiln_model_load(e, model, &m, &err), KN_ENOENT);
    CHECK_MSG(strstr(err.text, "calibrate first"), "%s", err.text);
    kiln_engine_destroy(e);

    open_engine(&f, KILN_DEVICE_CUDA, model, (struct kiln_engine_options){0});
    struct kn_task t[2] = {task(&f, 0, 2), task(&f, 1, 2)};
    int rc =
        kiln_model_calibrate(f.model, t, 2, &(struct kiln_callbacks){.ctx = &wide, .image = on_image}, &err);
    if (rc == KN_EUNSUPPORTED && gpu_capability() < 89) {
        close_engine(&f);
        SKIP("compute capability %d", gpu_capability());
    }
    CHECK_MSG(!rc, "%s", err.text);
    CHECK_INT(wide.count, 2);
    render(&f, t, 2, &narrow);
    close_engine(&f);

    /* the file is enough, and the batch makes no difference; the model is another */
    open_engine(&f, KILN_DEVICE_CUDA, model, o);
    CHECK(memcmp(before.sha256, f.info.sha256, sizeof before.sha256) != 0);
    double worst = 999;
    for (int i = 0; i < 2; i++) {
        render(&f, &t[i], 1, &again);
        CHECK_MEM(again.rgb[0], narrow.rgb[i], bytes_of(t));
        double db = psnr(narrow.rgb[i], wide.rgb[i], bytes_of(t));
        CHECK_MSG(db < 60, "image %d: %.1f dB: nothing is narrow", i, db);
        if (db < worst) worst = db;
    }
    CHECK_MSG(worst > 25, "%.1f dB from the picture without", worst);
    printf("e4m3: %.1f dB at worst\n", worst);
    close_engine(&f);
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    CHECK_INT(system(command), 0);
}

/* A LoRA for a fused layer, an interleaved one and a convolution. */
static void write_lora(const char *path) {
    static const struct {
        const char *name;
        int rows, columns;
    } layers[] = {{"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k", 16, 16},
                  {"down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj", 128, 16},
                  {"mid_block.resnets.0.conv2", 32, 32 * 9}};
    static float down[32 * 9], up[128];
    struct kx_dump *d;
    struct kn_err err = {0};
    CHECK(!kx_dump_create(&d));
    for (size_t i = 0; i < 3; i++) {
        char name[128];
        int conv = layers[i].columns > 100;
        for (int k = 0; k < layers[i].columns; k++) down[k] = (float)(k * 7919 % 13 - 6) / 12;
        for (int k = 0; k < layers[i].rows; k++) up[k] = (float)(k * 104729 % 11 - 5) / 10;
        snprintf(name, sizeof name, "unet.%s.lora_A.weight", layers[i].name);
        CHECK(!kx_dump_add(d, name, KX_F32, (int64_t[]){1, conv ? 32 : layers[i].columns, 3, 3}, conv ? 4 : 2,
                           down));
        snprintf(name, sizeof name, "unet.%s.lora_B.weight", layers[i].name);
        CHECK(!kx_dump_add(d, name, KX_F32, (int64_t[]){layers[i].rows, 1, 1, 1}, conv ? 4 : 2, up));
    }
    CHECK_MSG(!kx_dump_write(d, path, &err), "%s", err.text);
    kx_dump_destroy(d);
}

TEST(a_lora_changes_the_weights_in_place_and_leaves_nothing_behind) {
    static struct pictures before, gpu, cpu, after;
    struct fixture g, c;
    struct kn_err err = {0};
    char path[] = "/tmp/kn-lora-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    close(fd);
    unlink(path);
    write_lora(path);
    const struct kiln_lora lora = {path, 3};
    open_engine(&g, KILN_DEVICE_CUDA, pipeline("sd1"), (struct kiln_engine_options){0});
    open_engine(&c, KILN_DEVICE_CPU, pipeline("sd1"), (struct kiln_engine_options){0});
    struct kn_task t = task(&g, 0, 3);
    render(&g, &t, 1, &before);
    CHECK_MSG(!kiln_model_set_loras(g.model, &lora, 1, &err), "%s", err.text);
    CHECK_MSG(!kiln_model_set_loras(c.model, &lora, 1, &err), "%s", err.text);
    render(&g, &t, 1, &gpu);
    render(&c, &t, 1, &cpu);
    double change = psnr(gpu.rgb[0], before.rgb[0], bytes_of(&t));
    CHECK_MSG(change < 40, "it changes nothing: %.1f dB", change);
    double db = psnr(gpu.rgb[0], cpu.rgb[0], bytes_of(&t));
    CHECK_MSG(db > 46, "%.1f dB from the CPU's picture", db);
    CHECK_MSG(!kiln_model_set_loras(g.model, NULL, 0, &err), "%s", err.text);
    render(&g, &t, 1, &after);
    CHECK_MEM(after.rgb[0], before.rgb[0], bytes_of(&t));
    close_engine(&g);
    close_engine(&c);
    unlink(path);
}

/* ---- memory */

TEST(the_batch_is_what_fits_in_the_memory_that_there_is) {
    int before = INT_MAX, values = 0, rc = 0;
    struct kn_err err = {0};
    uint64_t bytes = (uint64_t)8 << 30;
    for (; !rc && bytes > 1 << 14; bytes -= bytes / 4) { /* less and less, until not even the weights fit */
        struct kiln_engine_options o = {.device = KILN_DEVICE_CUDA, .memory_bytes_max = bytes};
        struct fixture f = {0};
        rc = kiln_engine_create(&o, &f.engine, &err);
        if (!rc) rc = kiln_model_load(f.engine, pipeline("sd1"), &f.model, &err);
        if (!rc) {
            int n = kiln_model_minibatch_max(f.model, 1024, 1024);
            CHECK_MSG(n >= 1 && n <= before, "%llu bytes: %d at once, %d with more",
                      (unsigned long long)bytes, n, before);
            CHECK(n <= kiln_model_minibatch_max(f.model, 512, 512));
            values += n != before && n > 1;
            before = n;
        }
        close_engine(&f);
    }
    CHECK_MSG(rc == KN_EOOM, "%d, %s", rc, err.text);
    CHECK_MSG(values >= 3, "%d different batches", values);
}

#ifdef KX_SHIM

TEST(every_allocation_that_fails_is_an_ordinary_error) {
    static struct pictures p, want;
    struct fixture f;
    struct kn_err err = {0};
    open_engine(&f, KILN_DEVICE_CUDA, pipeline("sd1"), (struct kiln_engine_options){0});
    struct kn_task t[2] = {task(&f, 0, 1), task(&f, 1, 1)};
    render(&f, t, 2, &want);
    close_engine(&f);
    int failures = 0;
    for (int n = 1;; n += 1 + n / 3) {
        struct kiln_engine_options o = {.device = KILN_DEVICE_CUDA};
        size_t before = kx_shim_alive(NULL);
        kx_shim_fail("cudaMalloc", n, cudaErrorMemoryAllocation, false);
        f = (struct fixture){.info = f.info};
        int rc = kiln_engine_create(&o, &f.engine, &err);
        if (!rc) rc = kiln_model_load(f.engine, pipeline("sd1"), &f.model, &err);
        if (!rc) rc = try_render(&f, t, 2, &p, &err);
        if (!rc) {
            CHECK_INT(p.count, 2);
            for (int i = 0; i < 2; i++) CHECK_MEM(p.rgb[i], want.rgb[i], bytes_of(t));
        } else {
            CHECK_MSG(rc == KN_EOOM || rc == KN_ENOMEM, "%d, %s", rc, err.text);
            failures++;
        }
        kx_shim_reset();
        if (f.model) render(&f, t, 2, &p); /* it goes on */
        close_engine(&f);
        CHECK_INT(kx_shim_alive(NULL), before);
        if (!rc && n > 400) break;
        CHECK(n < 100000);
    }
    CHECK_MSG(failures > 5, "%d failures", failures);
}

TEST(a_device_that_fails_is_dead_for_good) {
    static const char *const calls[] = {"kx_launch", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaEventQuery"};
    static struct pictures p;
    kx_shim_quiet(true);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        struct fixture f;
        struct kn_err err = {0};
        open_engine(&f, KILN_DEVICE_CUDA, pipeline("sd1"), (struct kiln_engine_options){0});
        struct kn_task t = task(&f, 0, 3);
        kx_shim_fail(calls[i], 2, cudaErrorIllegalAddress, true);
        int rc = try_render(&f, &t, 1, &p, &err);
        CHECK_MSG(rc == KN_EDEVICE || (!rc && i == 3), "%s: %d, %s", calls[i], rc,
                  err.text); /* events are perhaps not asked twice */
        if (rc) {
            CHECK(p.count == 0);
            CHECK_INT(try_render(&f, &t, 1, &p, &err), KN_EDEVICE);
        }
        close_engine(&f);
        kx_shim_reset();
    }
    kx_shim_quiet(false);
}

#endif

/* ---- three threads */

#define BATCHES 4
#define EACH 2

struct pipe {
    struct fixture *f;
    struct kn_task tasks[BATCHES][EACH];
    struct pictures pictures[BATCHES];
    struct kiln_callbacks cb[BATCHES];
    struct kiln_minibatch *batch[BATCHES];
    int at[3]; /* batches that each stage is done with */
    int rc;
    pthread_mutex_t lock;
    pthread_cond_t moved;
};

struct worker {
    struct pipe *p;
    int stage;
};

static void *work(void *arg) {
    struct worker *w = arg;
    struct pipe *p = w->p;
    struct kn_err err = {0};
    for (int i = 0; i < BATCHES; i++) {
        pthread_mutex_lock(&p->lock);
        while (w->stage && p->at[w->stage - 1] <= i) pthread_cond_wait(&p->moved, &p->lock);
        pthread_mutex_unlock(&p->lock);
        int rc = 0;
        if (w->stage == 0)
            rc = kiln_minibatch_create(p->f->model, p->tasks[i], EACH, &p->cb[i], &p->batch[i], &err);
        if (w->stage == 1 && p->batch[i]) rc = kiln_minibatch_denoise(p->batch[i], &err);
        if (w->stage == 2 && p->batch[i]) rc = kiln_minibatch_finish(p->batch[i], &err);
        pthread_mutex_lock(&p->lock);
        if (rc) {
            p->rc = rc;
            fprintf(stderr, "stage %d of batch %d: %s\n", w->stage, i, err.text);
        }
        p->at[w->stage]++;
        pthread_cond_broadcast(&p->moved);
        pthread_mutex_unlock(&p->lock);
    }
    return NULL;
}

TEST(three_threads_in_the_three_stages_make_the_same_pictures) {
    static struct pipe p;
    static struct pictures alone;
    struct fixture f;
    open_engine(&f, KILN_DEVICE_CUDA, pipeline("sd1"), (struct kiln_engine_options){0});
    p = (struct pipe){.f = &f, .lock = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER};
    struct worker w[3];
    pthread_t threads[3];
    for (int i = 0; i < BATCHES; i++) {
        p.cb[i] = (struct kiln_callbacks){.ctx = &p.pictures[i], .image = on_image};
        for (int k = 0; k < EACH; k++) p.tasks[i][k] = task(&f, EACH * i + k, (uint32_t)(1 + i % 2));
    }
    for (int i = 0; i < 3; i++) {
        w[i] = (struct worker){&p, i};
        CHECK(!pthread_create(&threads[i], NULL, work, &w[i]));
    }
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    CHECK_INT(p.rc, 0);
    for (int i = 0; i < BATCHES; i++) {
        kiln_minibatch_destroy(p.batch[i]);
        CHECK_INT(p.pictures[i].count, EACH);
        for (int k = 0; k < EACH; k++) {
            render(&f, &p.tasks[i][k], 1, &alone);
            CHECK_MEM(p.pictures[i].rgb[k], alone.rgb[0], bytes_of(&p.tasks[i][k]));
        }
    }
    close_engine(&f);
}

TEST(two_models_live_in_one_engine) {
    static struct pictures a, b, again;
    struct fixture f;
    struct kn_err err = {0};
    open_engine(&f, KILN_DEVICE_CUDA, pipeline("sd1"), (struct kiln_engine_options){0});
    struct kiln_model *other;
    CHECK_MSG(!kiln_model_load(f.engine, pipeline("v8"), &other, &err), "%s", err.text);
    struct kn_task t = task(&f, 1, 2);
    render(&f, &t, 1, &a);
    struct kiln_model *first = f.model;
    f.model = other;
    render(&f, &t, 1, &b);
    CHECK(memcmp(a.rgb[0], b.rgb[0], bytes_of(&t)) != 0);
    f.model = first;
    kiln_model_destroy(other);
    render(&f, &t, 1, &again);
    CHECK_MEM(again.rgb[0], a.rgb[0], bytes_of(&t));
    close_engine(&f);
}
