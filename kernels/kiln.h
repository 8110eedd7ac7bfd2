/* The diffusion engine: a library that knows nothing of farms. This is its only public header.
 *
 * Life: kiln_engine_create → kiln_model_load (any number) → kiln_render (any number) → destroy in reverse.
 * An engine and its models belong to one thread at a time, but for the stages of a render
 * (kiln_minibatch_create); two engines may live in one process.
 *
 * Promise: the pixels of an image depend on its task, the model and kiln_engine_backend() alone: not on the
 * minibatch that it is rendered in, its place there, the number of threads or what was rendered before. */
#ifndef KILN_KERNELS_KILN_H
#define KILN_KERNELS_KILN_H

#include "base/spec.h"

#define KILN_ENGINE_VERSION KN_ENGINE_VERSION

struct kiln_engine;
struct kiln_model;

enum kiln_device { KILN_DEVICE_CPU, KILN_DEVICE_CUDA };

/* The storage type of weights and activations on a GPU; accumulators are f32. AUTO: f16, and bf16 for an
 * autoencoder that overflows f16 (its config says force_upcast). FP8: as AUTO, but the UNet's linear layers
 * and convolutions compute with e4m3 operands, on devices of compute capability 8.9 and later, once the
 * model's folder was calibrated (kiln_model_calibrate); not the same pictures. */
enum kiln_precision { KILN_PRECISION_AUTO, KILN_PRECISION_F16, KILN_PRECISION_BF16, KILN_PRECISION_FP8 };

struct kiln_engine_options {
    enum kiln_device device;
    int device_index; /* CUDA ordinal */
    int threads;      /* CPU: 0 means all cores that this process may use */
    uint64_t
        memory_bytes_max; /* how much memory it may use, a GPU's or the machine's; 0: what is free at the start */
    /* The rest is for a GPU alone. */
    enum kiln_precision precision;
    bool fastest;     /* gives the promise above up for speed: pixels may depend on the minibatch */
    bool own_kernels; /* do not use cuBLASLt and cuDNN even where they are installed */
    int watchdog_ms;  /* a step that takes longer counts as a hanging device (KN_EDEVICE); 0: 60,000 */
};

/* How many GPUs this build could use here; 0 for a build without CUDA. */
int kiln_device_count(void);

KN_MUST_USE int kiln_engine_create(const struct kiln_engine_options *opt, struct kiln_engine **out,
                                   struct kn_err *err);
void kiln_engine_destroy(struct kiln_engine *e); /* NULL is fine */
/* The backend class: a short name and a digest of all that can move a bit ("cpu-avx2-3fa1c2"). Lives as long
 * as e. */
const char *kiln_engine_backend(const struct kiln_engine *e);
/* The device's name for people ("AMD EPYC, 2 threads"). Lives as long as e. */
const char *kiln_engine_device(const struct kiln_engine *e);

/* Bytes of memory that the device has (a CPU: that the engine may use), and that are free there now. */
void kiln_engine_memory(struct kiln_engine *e, uint64_t *free_bytes, uint64_t *total_bytes);

/* How much of its time the device had work (texts, steps, pictures on any stream), measured on the device,
 * since the engine was made or since the last call; the rest it was idle. Both are 0 on a CPU. Any thread. */
struct kiln_busy {
    double busy_ms, span_ms;
};
void kiln_engine_busy(struct kiln_engine *e, struct kiln_busy *out);

/* Describes the model in DIR without loading its weights: name, defaults (kiln.json, else scheduler and
 * native size), and the hash, which reads every file once (a cache file may remember it: cache_dir, NULL for
 * none; entries are keyed by path, size, inode and mtime). KN_ENOENT, KN_EPARSE, KN_EUNSUPPORTED with the
 * file named. */
KN_MUST_USE int kiln_model_describe(const char *dir, const char *cache_dir, struct kn_model_info *out,
                                    struct kn_err *err);
/* The memory that a model takes on a CPU while it renders, from the folder's configuration and the headers of its
 * files alone. */
struct kiln_memory {
    uint64_t weights; /* of all networks, as they lie in memory: f32, whatever the files hold */
    uint64_t image;   /* activations of each picture of this size that is in work at a time */
};
KN_MUST_USE int kiln_model_memory(const char *dir, uint32_t width, uint32_t height, struct kiln_memory *out,
                                  struct kn_err *err);
/* Loads DIR (diffusers layout, safetensors; never pickle). On a CPU, a model whose weights
 * the memory that may be used does not hold is refused before they are read: KN_EOOM, with both figures. */
KN_MUST_USE int kiln_model_load(struct kiln_engine *e, const char *dir, struct kiln_model **out,
                                struct kn_err *err);
void kiln_model_destroy(struct kiln_model *m);
/* Applies LoRAs in this order, in place of those that were (n 0: none), without loading the model anew: the
 * layers that they change get other weights. kohya's, diffusers' and PEFT's safetensors files, the last with
 * adapter_config.json beside them (docs/MANUAL.md says what is read); a key that matches no layer of the model
 * or a value that is no number is KN_EPARSE, a kind or an option that is not applied (DoRA, LoHa …)
 * KN_EUNSUPPORTED, each with file and key, and then nothing has changed. Waits for what is being rendered;
 * minibatches that were created before are rendered with whatever weights there are then. */
#define KILN_LORAS_MAX 16
struct kiln_lora {
    const char *path;
    float scale; /* 1: as it was trained */
};
KN_MUST_USE int kiln_model_set_loras(struct kiln_model *m, const struct kiln_lora *loras, int n,
                                     struct kn_err *err);
/* The largest minibatch of this size that is safe here (at least 1): on a GPU computed from the memory that
 * there is, less where a minibatch turned out not to fit. Any thread; the first time for a size it waits
 * for a stage that runs. */
int kiln_model_minibatch_max(struct kiln_model *m, uint32_t width, uint32_t height);

/* One image of a minibatch, as it comes out. */
struct kiln_image {
    const struct kn_task *task; /* borrowed from the call */
    int index;                  /* its place in the call's tasks */
    int status;                 /* 0; KN_ENAN: the prediction or the picture was not finite, rgb is NULL */
    int step;                   /* with KN_ENAN: the step at which it was seen */
    const uint8_t *rgb;         /* height × width × 3, borrowed until the callback returns */
    double render_ms;           /* this image's share of the minibatch's time */
    bool flat;                  /* every pixel the same colour */
};

struct kiln_callbacks {
    void *ctx;
    /* After every denoising step of the whole minibatch; returning non-zero aborts the render with
     * KN_ECANCELED. May be NULL. */
    int (*step)(void *ctx, int step, int steps);
    /* Once an image, in the order of the tasks; returning non-zero aborts. */
    int (*image)(void *ctx, const struct kiln_image *image);
    /* Every named intermediate (kiln-render --dump); NULL for none. data: f32, or i32 for "input_ids" and
     * "input_ids_2". */
    void (*dump)(void *ctx, const char *name, const void *data, const int64_t *shape, int ndim);
};

/* Renders n resolved tasks of one size (KN_EINVAL otherwise); prompts, negative prompts, seeds, guidance,
 * sampler, schedule and steps differ freely. n may be more than kiln_model_minibatch_max(): it is cut, and
 * cut smaller when memory is short. Errors of a single image come through the callback; the return value
 * speaks of the whole: KN_EOOM (one image does not fit), KN_EDEVICE (the engine is dead and must be
 * destroyed), KN_ECANCELED. */
KN_MUST_USE int kiln_render(struct kiln_model *m, const struct kn_task *tasks, int n,
                            const struct kiln_callbacks *cb, struct kn_err *err);

/* Makes a model ready for KILN_PRECISION_FP8: renders the tasks (through cb, as kiln_render does) on an
 * engine of another precision, writes what was seen to kiln-fp8.json in the model's folder, which changes the
 * model's hash, and from then on this model computes with eight-bit operands. KN_EUNSUPPORTED where the
 * device cannot. */
KN_MUST_USE int kiln_model_calibrate(struct kiln_model *m, const struct kn_task *tasks, int n,
                                     const struct kiln_callbacks *cb, struct kn_err *err);
/* kiln_render in its three stages, for callers that want them to overlap: three threads may be in the three
 * stages of three minibatches of one model at the same time (each stage belongs to one thread at a time; on
 * a CPU they wait for one another). tasks, cb and what it points to are borrowed until destroy. n is at
 * most kiln_model_minibatch_max(); KN_EOOM comes before any image is handed out, or from finish when a
 * single picture does not fit.
 *
 *     create    encodes the texts, draws the noise          no callback but dump
 *     denoise   the loop                                    callback step, dump
 *     finish    decodes                                     callback image, dump */
struct kiln_minibatch;
KN_MUST_USE int kiln_minibatch_create(struct kiln_model *m, const struct kn_task *tasks, int n,
                                      const struct kiln_callbacks *cb, struct kiln_minibatch **out,
                                      struct kn_err *err);
KN_MUST_USE int kiln_minibatch_denoise(struct kiln_minibatch *b, struct kn_err *err);
KN_MUST_USE int kiln_minibatch_finish(struct kiln_minibatch *b, struct kn_err *err);
void kiln_minibatch_destroy(struct kiln_minibatch *b); /* NULL is fine */

/* Encodes 8-bit RGB as PNG with A1111's `parameters` text (tEXt if it fits Latin-1, else iTXt; NULL for none)
 * and the IPTC mark of a synthetic picture (XMP in an iTXt chunk, before IDAT). Deterministic: the same input
 * gives the same bytes. */
KN_MUST_USE int kiln_png_encode(const uint8_t *rgb, uint32_t width, uint32_t height, const char *parameters,
                                struct kn_buf *out, struct kn_err *err);

#endif
