/* The engine's own structures: engine and model (engine.c), texts (condition.c), rendering (render.c).
 *
 * Threads. A render has three stages (kiln.h), each with a context and a lock of its own, so that on a GPU
 * three threads may be in three stages at the same time: stage 1 uses the text encoder and the cache of
 * texts, stage 2 the UNet and its sessions, stage 3 the autoencoder. On a CPU all three have the same context
 * and lock. Who loads or destroys a model holds all locks, the first stage's first. */
#ifndef KILN_KERNELS_ENGINE_H
#define KILN_KERNELS_ENGINE_H

#include <pthread.h>

#include "base/fs.h"

#include "kernels/io/config.h"
#include "kernels/kiln.h"
#include "kernels/ops.h"

struct kx_tokenizer;

enum kx_stage { KX_STAGE_TEXT, KX_STAGE_LOOP, KX_STAGE_PICTURE, KX_STAGES };

struct kiln_engine {
    struct kiln_engine_options options;
    /* A context for each stage; own. On a CPU all four are the same one. vae_wide computes in bf16, for
     * autoencoders that overflow f16; where vae does so already it is vae. */
    struct kx_ctx *text, *unet, *vae, *vae_wide;
    struct busy *busy; /* owns; NULL on a CPU */
    bool gpu;
    uint64_t memory_max,
        weights; /* CPU: bytes that it may use, and that loaded models' weights take of them */
    pthread_mutex_t locks[KX_STAGES];
    char backend[KN_BACKEND_MAX + 1];
    char device[KN_DEVICE_MAX + 1];
};

/* A text as the UNet takes it. */
struct encoded {
    char *text;         /* owns */
    int32_t *ids;       /* encoders × positions; NULL for the text that is all zeros (kiln_model.none) */
    float *states;      /* positions × width, the encoders' side by side */
    float *pooled;      /* pooled: the second encoder's; NULL when the UNet takes none */
    uint64_t used;      /* the larger, the later */
    uint64_t minibatch; /* the last minibatch that asked for it: not dropped while that one is put together */
};

#define TEXT_CACHE_MAX 256
#define ENCODERS_MAX 2

/* Buffers and recordings of one shape of minibatch (render.c). */
struct session;

struct kiln_model {
    struct kiln_engine *engine; /* borrowed */
    struct kx_config cfg;
    struct kx_tokenizer *tokenizers[ENCODERS_MAX];
    struct kx_text *texts[ENCODERS_MAX];
    int encoders;
    struct kx_unet *unet;
    struct kx_vae *vae;
    struct kx_ctx *vae_ctx; /* the engine's vae or vae_wide */
    char dir[KN_PATH_MAX];
    bool spoiled; /* a change of weights failed, and so did taking it back (lora.c) */

    int positions, width, pooled; /* of the text states; values of the pooled state, 0: none */
    struct encoded none;          /* all zeros: stands for a text that is NULL (kx_condition) */
    struct encoded cache[TEXT_CACHE_MAX];
    int cache_count, cache_max;
    uint64_t cache_clock, cache_minibatch;

    struct session *sessions;  /* the latest used first */
    struct kiln_memory memory; /* CPU: its account, with a picture of the default size */
    size_t weights_free;       /* GPU: bytes that were free when the weights were in place */
    pthread_mutex_t limits_lock;
    struct minibatch_limit {
        uint32_t width, height;
        int n;
    } limits[8]; /* GPU: the largest minibatches that were computed, or found too large */
    int limit_count, limit_next;
    int planned_h, planned_w,
        planned_n;       /* used by stage 1: the largest minibatch whose decoding was planned */
    int decode_together; /* 0: all; halved when memory is short */
};

/* ---- busy.c: when the device had work */

struct busy;
KN_MUST_USE int kx_busy_create(struct kiln_engine *e, struct kn_err *err);
void kx_busy_destroy(struct kiln_engine *e);
/* A stage calls `from` before it queues work on its context, `to` behind it, and `note` once the device is
 * done: the time between the two is then counted as busy. On a CPU they do nothing. On the stage's thread. */
void kx_busy_from(struct kiln_engine *e, enum kx_stage stage, struct kx_ctx *ctx);
void kx_busy_to(struct kiln_engine *e, enum kx_stage stage, struct kx_ctx *ctx);
void kx_busy_note(struct kiln_engine *e, enum kx_stage stage, struct kx_ctx *ctx);
/* The same between marks of the caller's own. */
void kx_busy_between(struct kiln_engine *e, struct kx_ctx *ctx, struct kx_event *from, struct kx_event *to);

/* ---- engine.c */

void kx_stage_enter(struct kiln_engine *e, enum kx_stage stage);
void kx_stage_leave(struct kiln_engine *e, enum kx_stage stage);
/* Takes and releases the locks of all stages, in order. */
void kx_engine_enter_all(struct kiln_engine *e);
void kx_engine_leave_all(struct kiln_engine *e);

/* ---- memory.c: a CPU's */

#define KX_LATENT_COPIES                                                                                     \
    (4 + KX_HISTORY_MAX + 4) /* an image's, of the size of its latents: those, their history */

KN_MUST_USE int kx_model_memory(const struct kx_config *cfg, const char *dir, uint32_t width, uint32_t height,
                                struct kiln_memory *out, struct kn_err *err);
/* Settles how much the engine may use. Once, before anything is loaded. */
void kx_engine_memory_init(struct kiln_engine *e);
/* A model's weights were loaded, or (a negative number) dropped: activations have what is left. */
void kx_engine_memory_taken(struct kiln_engine *e, int64_t weights);
/* KN_EOOM: so much for weights cannot be had now; a picture of this size does not fit beside the weights. err names
 * both figures. */
KN_MUST_USE int kx_engine_memory_check(const struct kiln_engine *e, uint64_t weights, struct kn_err *err);
KN_MUST_USE int kx_image_check(struct kiln_model *m, uint32_t width, uint32_t height, struct kn_err *err);
int kx_minibatch_cpu(struct kiln_model *m, uint32_t width, uint32_t height);

/* ---- fp8.c */

/* Quantizes the UNet's layers, with the scales of the folder's kiln-fp8.json. All stages are entered. */
KN_MUST_USE int kx_fp8_load(struct kiln_model *m, struct kn_err *err);

/* ---- condition.c */

/* Encodes n texts: out[i] is the encoding of texts[i], borrowed until the next call; equal texts share one.
 * A text that is NULL is encoded as zeros. */
KN_MUST_USE int kx_condition(struct kiln_model *m, const char *const *texts, int n,
                             const struct encoded **out, struct kn_err *err);
KN_MUST_USE int kx_condition_init(struct kiln_model *m, struct kn_err *err);
void kx_condition_fini(struct kiln_model *m);
/* Drops all encodings: the text encoders' weights have changed. */
void kx_condition_forget(struct kiln_model *m);

/* ---- render.c */

void kx_sessions_drop(struct kiln_model *m);
/* Remembers that a minibatch of n did not fit; what fits is less. */
void kx_minibatch_limit(struct kiln_model *m, uint32_t width, uint32_t height, int n);

#endif
