/* The engine behind kiln.h: an engine is a backend's contexts, a model is a folder's networks. How an image
 * is made is in condition.c (texts) and render.c (the loop). */
#include "kernels/engine.h"

#include <assert.h>
#include <gnu/libc-version.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/fs.h"
#include "base/hash.h"
#include "kernels/io/safetensors.h"
#include "kernels/text/tokenizer.h"
#ifdef KILN_HAVE_CUDA
#include "kernels/cuda/cuda.h"
#endif

#define MINIBATCH_MAX 64
#define WATCHDOG_MS 60000

/* ---- engine ---- */

/* Everything outside of this folder's code that can move a bit, and the code's version. */
static void name_backend(struct kiln_engine *e) {
    char facts[1024];
    uint8_t digest[KN_SHA256_BYTES];
    char hex[KN_SHA256_HEX];
    snprintf(facts, sizeof facts, "engine %s\nbackend %s%s\nvae %s\nlibm %s\nunicode %s\ncompiler %s\n",
             KILN_ENGINE_VERSION, kx_ctx_facts(e->unet),
             e->options.precision == KILN_PRECISION_FP8 ? "; e4m3" : "",
             e->gpu ? kx_ctx_facts(e->vae_wide) : "", gnu_get_libc_version(), utf8proc_unicode_version(),
             __VERSION__);
    kn_sha256(facts, strlen(facts), digest);
    kn_hex(digest, sizeof digest, hex);
    snprintf(e->backend, sizeof e->backend, "%s-%.6s", kx_ctx_class(e->unet), hex);
}

#ifdef KILN_HAVE_CUDA

int kiln_device_count(void) {
    return kx_cuda_device_count();
}

/* Text, UNet and autoencoder each get a stream; the loop's is the most urgent, since it is what all wait for.
 */
static int create_cuda(struct kiln_engine *e, struct kn_err *err) {
    const struct kiln_engine_options *o = &e->options;
    bool bf16 = o->precision == KILN_PRECISION_BF16;
    struct kx_cuda_options c = {.device = o->device_index,
                                .type = bf16 ? KX_STORE_BF16 : KX_STORE_F16,
                                .fastest = o->fastest,
                                .own_kernels = o->own_kernels,
                                .priority = 1,
                                .hang_ms = o->watchdog_ms,
                                .memory_max = (size_t)o->memory_bytes_max};
    int rc = kx_cuda_ctx_create(&c, &e->unet, err);
    if (rc) return rc;
    c.parent = e->unet;
    c.priority = 0;
    if ((rc = kx_cuda_ctx_create(&c, &e->text, err)) || (rc = kx_cuda_ctx_create(&c, &e->vae, err)))
        return rc;
    if (bf16 || o->precision == KILN_PRECISION_F16) {
        e->vae_wide = e->vae;
        return 0;
    }
    c.type = KX_STORE_BF16;
    return kx_cuda_ctx_create(&c, &e->vae_wide, err);
}

#else

int kiln_device_count(void) {
    return 0;
}

static int create_cuda(struct kiln_engine *e, struct kn_err *err) {
    (void)e;
    return kn_err_set(err, KN_EUNSUPPORTED, "device: this engine was built for the CPU alone");
}

#endif

int kiln_engine_create(const struct kiln_engine_options *opt, struct kiln_engine **out, struct kn_err *err) {
    *out = NULL;
    struct kiln_engine *e = calloc(1, sizeof *e);
    if (!e) return kn_err_set(err, KN_ENOMEM, "out of memory");
    for (int i = 0; i < KX_STAGES; i++) pthread_mutex_init(&e->locks[i], NULL);
    e->options = *opt;
    if (!e->options.watchdog_ms) e->options.watchdog_ms = WATCHDOG_MS;
    e->gpu = opt->device == KILN_DEVICE_CUDA;
    int rc = e->gpu ? create_cuda(e, err) : kx_cpu_ctx_create(opt->threads, &e->unet, err);
    if (!e->gpu) e->text = e->vae = e->vae_wide = e->unet;
    if (rc) {
        kiln_engine_destroy(e);
        return rc;
    }
    if (!e->gpu) kx_engine_memory_init(e);
    if (e->gpu && (rc = kx_busy_create(e, err))) {
        kiln_engine_destroy(e);
        return rc;
    }
    name_backend(e);
    kx_ctx_describe(e->unet, e->device, sizeof e->device);
    *out = e;
    return 0;
}

void kiln_engine_destroy(struct kiln_engine *e) {
    if (!e) return;
    kx_busy_destroy(e);
    if (e->vae_wide != e->vae) kx_ctx_destroy(e->vae_wide);
    if (e->vae != e->unet) kx_ctx_destroy(e->vae);
    if (e->text != e->unet) kx_ctx_destroy(e->text);
    kx_ctx_destroy(e->unet); /* last: the others are of its family */
    for (int i = 0; i < KX_STAGES; i++) pthread_mutex_destroy(&e->locks[i]);
    free(e);
}

void kiln_engine_memory(struct kiln_engine *e, uint64_t *free_bytes, uint64_t *total_bytes) {
    size_t available, total;
    kx_memory(e->unet, &available, &total);
    *free_bytes = available;
    *total_bytes = e->gpu || e->memory_max > total ? total : (size_t)e->memory_max;
}

/* ---- stages ---- */

void kx_stage_enter(struct kiln_engine *e, enum kx_stage stage) {
    pthread_mutex_lock(&e->locks[e->gpu ? stage : KX_STAGE_TEXT]);
}

void kx_stage_leave(struct kiln_engine *e, enum kx_stage stage) {
    pthread_mutex_unlock(&e->locks[e->gpu ? stage : KX_STAGE_TEXT]);
}

void kx_engine_enter_all(struct kiln_engine *e) {
    for (int i = 0; i < (e->gpu ? KX_STAGES : 1); i++) pthread_mutex_lock(&e->locks[i]);
}

void kx_engine_leave_all(struct kiln_engine *e) {
    for (int i = 0; i < (e->gpu ? KX_STAGES : 1); i++) pthread_mutex_unlock(&e->locks[i]);
}

const char *kiln_engine_backend(const struct kiln_engine *e) {
    return e->backend;
}

const char *kiln_engine_device(const struct kiln_engine *e) {
    return e->device;
}

/* ---- model ---- */

typedef int (*create_network)(struct kiln_model *m, const struct kx_weights *w, struct kn_err *err);

static int create_text(struct kiln_model *m, const struct kx_weights *w, struct kn_err *err) {
    return kx_text_create(m->engine->text, &m->cfg.text, w, &m->texts[0], err);
}
static int create_text2(struct kiln_model *m, const struct kx_weights *w, struct kn_err *err) {
    return kx_text_create(m->engine->text, &m->cfg.text2, w, &m->texts[1], err);
}
static int create_unet(struct kiln_model *m, const struct kx_weights *w, struct kn_err *err) {
    return kx_unet_create(m->engine->unet, &m->cfg.unet, w, &m->unet, err);
}
static int create_vae(struct kiln_model *m, const struct kx_weights *w, struct kn_err *err) {
    return kx_vae_create(m->vae_ctx, &m->cfg.vae, w, &m->vae, err);
}

static int load_network(struct kiln_model *m, const char *dir, const char *part, const char *stem,
                        create_network create, struct kn_err *err) {
    char path[KN_PATH_MAX];
    struct kx_weights *w;
    int rc = kn_fs_join(path, sizeof path, dir, part);
    if (rc) return kn_err_set(err, rc, "%s: path too long", dir);
    if ((rc = kx_weights_open(path, stem, &w, err))) return rc;
    rc = create(m, w, err);
    kx_weights_close(w);
    return rc ? kn_err_prefix(err, "%s", path) : 0;
}

/* A text encoder and its tokenizer. */
static int load_encoder(struct kiln_model *m, const char *dir, int i, struct kn_err *err) {
    static const char *const parts[ENCODERS_MAX][2] = {{"tokenizer", "text_encoder"},
                                                       {"tokenizer_2", "text_encoder_2"}};
    const struct kx_text_config *cfg = i ? &m->cfg.text2 : &m->cfg.text;
    char path[KN_PATH_MAX];
    assert(i < ENCODERS_MAX);
    int rc = kn_fs_join(path, sizeof path, dir, parts[i][0]);
    if (rc) return kn_err_set(err, rc, "%s: path too long", dir);
    if ((rc = kx_tokenizer_open(path, cfg->positions_max, &m->tokenizers[i], err))) return rc;
    if (kx_tokenizer_id_max(m->tokenizers[i]) >= cfg->vocab_size)
        return kn_err_set(err, KN_EPARSE, "%s: token %d is beyond %s's vocab_size %d", path,
                          kx_tokenizer_id_max(m->tokenizers[i]), parts[i][1], cfg->vocab_size);
    if (kx_tokenizer_length(m->tokenizers[i]) != kx_tokenizer_length(m->tokenizers[0]))
        return kn_err_set(err, KN_EUNSUPPORTED, "%s: texts of %d tokens beside the first tokenizer's %d",
                          path, kx_tokenizer_length(m->tokenizers[i]), kx_tokenizer_length(m->tokenizers[0]));
    return load_network(m, dir, parts[i][1], "model", i ? create_text2 : create_text, err);
}

static void destroy(struct kiln_model *m) {
    kx_sessions_drop(m);
    kx_condition_fini(m);
    for (int i = 0; i < m->encoders; i++) {
        kx_tokenizer_close(m->tokenizers[i]);
        kx_text_destroy(m->texts[i]);
    }
    kx_unet_destroy(m->unet);
    kx_vae_destroy(m->vae);
    if (!m->engine->gpu) kx_engine_memory_taken(m->engine, -(int64_t)m->memory.weights);
    pthread_mutex_destroy(&m->limits_lock);
    free(m);
}

static int load(struct kiln_model *m, const char *dir, struct kn_err *err) {
    struct kiln_engine *e = m->engine;
    const struct kn_defaults *d = &m->cfg.defaults;
    int rc = kx_config_read(dir, &m->cfg, err);
    if (!rc && !e->gpu) {
        rc = kx_model_memory(&m->cfg, dir, d->width, d->height, &m->memory, err);
        if (!rc) rc = kx_engine_memory_check(e, m->memory.weights, err);
        if (rc) {
            m->memory.weights = 0; /* none of them is in memory */
            return rc;
        }
        kx_engine_memory_taken(e, (int64_t)m->memory.weights);
    }
    /* the field is true for whatever diffusers saves; it counts for this pipeline alone, as there */
    if (!rc && m->cfg.index.xl && m->cfg.vae.force_upcast) m->vae_ctx = e->vae_wide;
    m->encoders = m->cfg.index.xl ? 2 : 1;
    for (int i = 0; i < m->encoders && !rc; i++) rc = load_encoder(m, dir, i, err);
    if (!rc) rc = load_network(m, dir, "unet", "diffusion_pytorch_model", create_unet, err);
    if (!rc) rc = load_network(m, dir, "vae", "diffusion_pytorch_model", create_vae, err);
    if (!rc) rc = kx_condition_init(m, err);
    if (!rc && e->gpu && e->options.precision == KILN_PRECISION_FP8) rc = kx_fp8_load(m, err);
    if (rc) return rc;
    size_t total;
    kx_memory(e->unet, &m->weights_free, &total);
    return 0;
}

int kiln_model_load(struct kiln_engine *e, const char *dir, struct kiln_model **out, struct kn_err *err) {
    *out = NULL;
    struct kiln_model *m = calloc(1, sizeof *m);
    if (!m) return kn_err_set(err, KN_ENOMEM, "out of memory");
    m->engine = e;
    m->vae_ctx = e->vae;
    pthread_mutex_init(&m->limits_lock, NULL);
    kx_engine_enter_all(e);
    int rc = snprintf(m->dir, sizeof m->dir, "%s", dir) < (int)sizeof m->dir
                 ? load(m, dir, err)
                 : kn_err_set(err, KN_ELIMIT, "%s: path too long", dir);
    if (rc) destroy(m);
    kx_engine_leave_all(e);
    if (!rc) *out = m;
    return rc;
}

void kiln_model_destroy(struct kiln_model *m) {
    if (!m) return;
    struct kiln_engine *e = m->engine;
    kx_engine_enter_all(e);
    destroy(m);
    kx_engine_leave_all(e);
}

/* ---- how many images at once ---- */

/* The bytes that a minibatch of n takes beside the weights: the loop's activations for two rows an image,
 * its latents, and one picture in the autoencoder (it takes as many as there is room for). Counted by
 * planning, so exact but for the backend's workspace, for which there is a reserve. */
static int minibatch_bytes(struct kiln_model *m, int n, int w, int h, size_t *bytes) {
    struct kn_err err;
    size_t unet, vae, latents = (size_t)w * (size_t)h * (size_t)m->cfg.unet.in_channels * sizeof(float);
    int rc = kx_unet_bytes(m->unet, 2 * n, h, w, m->positions, &unet, &err);
    if (!rc) rc = kx_vae_bytes(m->vae, 1, h, w, &vae, &err);
    if (!rc) *bytes = unet + vae + (size_t)n * latents * KX_LATENT_COPIES;
    return rc;
}

static int minibatch_gpu(struct kiln_model *m, uint32_t width, uint32_t height) {
    int w = (int)width / m->cfg.vae.factor, h = (int)height / m->cfg.vae.factor, low = 1,
        high = MINIBATCH_MAX;
    size_t have = m->weights_free / 100 * 92, bytes;
    while (low < high) { /* low fits, or is 1 */
        int n = (low + high + 1) / 2;
        if (!minibatch_bytes(m, n, w, h, &bytes) && bytes <= have)
            low = n;
        else
            high = n - 1;
    }
    return low;
}

static struct minibatch_limit *find_limit(struct kiln_model *m, uint32_t width, uint32_t height) {
    for (int i = 0; i < m->limit_count; i++)
        if (m->limits[i].width == width && m->limits[i].height == height) return &m->limits[i];
    return NULL;
}

static struct minibatch_limit *add_limit(struct kiln_model *m, uint32_t width, uint32_t height, int n) {
    int max = (int)(sizeof m->limits / sizeof *m->limits);
    struct minibatch_limit *l = &m->limits[m->limit_next];
    m->limit_next = (m->limit_next + 1) % max;
    if (m->limit_count < max) m->limit_count++;
    *l = (struct minibatch_limit){width, height, n};
    return l;
}

int kiln_model_minibatch_max(struct kiln_model *m, uint32_t width, uint32_t height) {
    struct kiln_engine *e = m->engine;
    pthread_mutex_lock(&m->limits_lock);
    struct minibatch_limit *l = find_limit(m, width, height);
    int n;
    if (e->gpu) {
        if (!l) { /* counting plans on the contexts of two stages */
            kx_stage_enter(e, KX_STAGE_LOOP);
            kx_stage_enter(e, KX_STAGE_PICTURE);
            l = add_limit(m, width, height, minibatch_gpu(m, width, height));
            kx_stage_leave(e, KX_STAGE_PICTURE);
            kx_stage_leave(e, KX_STAGE_LOOP);
        }
        n = l->n;
    } else {
        n = kx_minibatch_cpu(m, width, height);
        if (l && l->n < n) n = l->n;
    }
    pthread_mutex_unlock(&m->limits_lock);
    return n;
}

void kx_minibatch_limit(struct kiln_model *m, uint32_t width, uint32_t height, int n) {
    pthread_mutex_lock(&m->limits_lock);
    struct minibatch_limit *l = find_limit(m, width, height);
    if (!l) l = add_limit(m, width, height, n);
    l->n = n / 2 < 1 ? 1 : n / 2;
    pthread_mutex_unlock(&m->limits_lock);
}
