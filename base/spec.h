/* The render spec: what is asked for one image, the names of samplers and schedules, ranges and defaults.
 *
 * A `struct kn_task` with all fields set, the model's hash and the backend class fix every byte of the
 * pixels. Unset settings (those whose bit in `set` is 0) are filled from the model's defaults by
 * kn_task_resolve() before anything is submitted; a resolved task has every bit set. Used by the CLI, the
 * worker, the engine and kiln-render alike. */
#ifndef KN_BASE_SPEC_H
#define KN_BASE_SPEC_H

#include <stdbool.h>
#include <stdint.h>
#include "base/buf.h"
#include "base/err.h"
#include "base/hash.h"
#include "base/limits.h"

/* The samplers, in the order in which a person is told of them: X(id, wire value, A1111's name, ComfyUI's name,
 * diffusers' class, what the Karras schedule means with it, the schedule that A1111 calls Automatic with it:
 * "normal", "karras" or NULL for another). Wire values are for ever, and at most 31: masks
 * have a bit for each. The first stands apart so that KN_SAMPLER_LIST has its commas between names.
 *
 * Everything that knows the samplers is made from this table or does not compile without the new one's case:
 * beside a row here a sampler needs its steps (kernels/samplers/schedule.c), the fields of a folder that
 * diffusers' class reads (kernels/io/config.c), and its rows of the golden file (tests/golden/make.py). */
#define KN_SAMPLER_FIRST(X) X(DDIM, 1, "DDIM", "ddim", "DDIMScheduler", NONE, "normal")
#define KN_SAMPLER_OTHERS(X)                                                                                 \
    X(PNDM, 2, "PNDM", "pndm", "PNDMScheduler", NONE, "normal")                                              \
    X(EULER, 3, "Euler", "euler", "EulerDiscreteScheduler", OPTION, "normal")                                \
    X(EULER_A, 4, "Euler a", "euler_ancestral", "EulerAncestralDiscreteScheduler", ASKED, "normal")          \
    X(DPMPP_2M, 5, "DPM++ 2M", "dpmpp_2m", "DPMSolverMultistepScheduler", OPTION, "karras")
#define KN_SAMPLER_TABLE(X) KN_SAMPLER_FIRST(X) KN_SAMPLER_OTHERS(X)

/* The meaning of the Karras schedule with a sampler. */
enum kn_karras {
    KN_KARRAS_NONE,   /* nothing: the sampler does not walk sigmas */
    KN_KARRAS_ASKED,  /* a person may ask for it; diffusers' class has no such option, so that a folder's
                       * use_karras_sigmas means nothing there */
    KN_KARRAS_OPTION, /* diffusers' class has the option use_karras_sigmas, which a folder may state */
};

enum kn_sampler {
    KN_SAMPLER_UNSET = 0,
#define KN_SAMPLER_ENUM(id, value, a1111, comfy, diffusers, karras, automatic) KN_SAMPLER_##id = (value),
    KN_SAMPLER_TABLE(KN_SAMPLER_ENUM)
#undef KN_SAMPLER_ENUM
};

#define KN_SAMPLER_ONE(id, value, a1111, comfy, diffusers, karras, automatic) +1
#define KN_SAMPLER_BIT(id, value, a1111, comfy, diffusers, karras, automatic) | 1u << (value)
#define KN_SAMPLER_NAME(id, value, a1111, comfy, diffusers, karras, automatic) a1111
#define KN_SAMPLER_NEXT_NAME(id, value, a1111, comfy, diffusers, karras, automatic) ", " a1111

enum { KN_SAMPLER_COUNT = 0 KN_SAMPLER_TABLE(KN_SAMPLER_ONE) };
/* One bit a sampler, 1 << its value. */
#define KN_SAMPLER_MASK (0u KN_SAMPLER_TABLE(KN_SAMPLER_BIT))
/* "DDIM, PNDM, Euler, …", a literal. */
#define KN_SAMPLER_LIST KN_SAMPLER_FIRST(KN_SAMPLER_NAME) KN_SAMPLER_OTHERS(KN_SAMPLER_NEXT_NAME)
/* All of them, in the table's order. */
extern const enum kn_sampler kn_samplers[KN_SAMPLER_COUNT];

/* The schedules: X(id, wire value, name). Wire values are for ever, and at most 7. */
#define KN_SCHEDULE_TABLE(X) X(NORMAL, 1, "normal") X(KARRAS, 2, "karras")

enum kn_schedule {
    KN_SCHEDULE_UNSET = 0,
#define KN_SCHEDULE_ENUM(id, value, name) KN_SCHEDULE_##id = (value),
    KN_SCHEDULE_TABLE(KN_SCHEDULE_ENUM)
#undef KN_SCHEDULE_ENUM
};

/* Parse any of the names above, case ignored; "Euler a", "euler_a", "k_euler_a" too. On failure KN_EINVAL and
 * a text with the list and the nearest name. */
KN_MUST_USE int kn_sampler_parse(const char *text, enum kn_sampler *out, struct kn_err *err);
KN_MUST_USE int kn_schedule_parse(const char *text, enum kn_schedule *out, struct kn_err *err);
const char *kn_sampler_name(enum kn_sampler s);   /* A1111's; "?" for a value not in the table */
const char *kn_schedule_name(enum kn_schedule s); /* "normal", "karras" */
/* The name of A1111's Automatic schedule with the sampler; NULL when kiln does not have that one. */
const char *kn_sampler_automatic(enum kn_sampler s);
/* True if the schedule means something with the sampler. */
bool kn_schedule_fits(enum kn_sampler s, enum kn_schedule sch);
/* True if diffusers' class of the sampler reads use_karras_sigmas, and so takes it from a folder that states it. */
bool kn_sampler_reads_karras(enum kn_sampler s);

enum kn_task_field {
    KN_SET_NEGATIVE = 1u << 0,
    KN_SET_SEED = 1u << 1,
    KN_SET_SAMPLER = 1u << 2,
    KN_SET_SCHEDULE = 1u << 3,
    KN_SET_STEPS = 1u << 4,
    KN_SET_CFG = 1u << 5,
    KN_SET_SIZE = 1u << 6,
    KN_SET_MODEL = 1u << 7,
    KN_SET_ALL = 0xff,
    KN_SET_IMAGES = 1u << 8, /* one of the images that its line asked for itself; only between the reader and
                              * kn_tasks_expand(), see prompts.h */
    KN_SET_SEED_EACH = 1u << 9, /* its seed is to be drawn for its prompt alone; likewise */
};

struct kn_task {
    char *prompt;         /* UTF-8, never NULL; ownership: see the container */
    char *negative;       /* UTF-8, never NULL ("" is none) */
    char *extra;          /* a JSON object, or NULL */
    char *model;          /* the name or folder asked for, or NULL; after submission model_index counts */
    uint32_t model_index; /* into the batch's table of models */
    uint64_t seed;
    float cfg;
    uint32_t steps;
    uint32_t width, height; /* pixels; one alone may be set: then KN_SET_SIZE is not, and the other is 0 */
    enum kn_sampler sampler;
    enum kn_schedule schedule;
    uint32_t set;  /* KN_SET_… */
    uint32_t line; /* of the prompt file, for messages; 0: none */
};

/* The settings of a model's folder, for whatever the person leaves open. */
struct kn_defaults {
    enum kn_sampler sampler;   /* KN_SAMPLER_UNSET: the folder names a class that is none of ours, see
                              * kn_model_info.scheduler; a task must then say its sampler itself */
    enum kn_schedule schedule; /* goes with the sampler above */
    uint32_t steps;            /* 20 if the folder says nothing */
    float cfg;                 /* 7 if the folder says nothing */
    uint32_t width, height;
    bool karras; /* the folder's scheduler states use_karras_sigmas, which another sampler takes over if its
                  * class has the option */
};

/* A model as a farm knows it. */
struct kn_model_info {
    char name[KN_NAME_MAX + 1];      /* the folder's last path component */
    uint8_t sha256[KN_SHA256_BYTES]; /* over the sorted "path\0sha256-hex\n" of the files that it loads */
    struct kn_defaults defaults;
    uint32_t size_multiple; /* width and height must be multiples of it (VAE factor × UNet levels) */
    uint32_t size_max;      /* 0: KN_SIZE_MAX */
    /* Memory that it takes on a CPU (kernels/kiln.h, struct kiln_memory): its weights, and each picture of the
     * default size that is in work at a time. 0: not known. Said by who reads the folder; not on the wire. */
    uint64_t memory_weights, memory_image;
    /* Where defaults.sampler is unset: the scheduler's class that the folder names; else "". */
    char scheduler[KN_NAME_MAX + 1];
};

#define KN_PROGRAM_BYTES (128ull << 20) /* of a worker beside weights and activations; measured */
/* The bytes that a process needs in order to have `images` pictures of this size in work at a time: the program's
 * own, the weights, the pictures. 0: not known. */
uint64_t kn_model_need(const struct kn_model_info *m, uint32_t width, uint32_t height, uint32_t images);

/* Sets what is unset from d, then checks every range, the schedule against the sampler and the size against
 * the model. err names the field ("steps: 0 is not between 1 and 1000"). */
KN_MUST_USE int kn_task_resolve(struct kn_task *t, const struct kn_model_info *m, struct kn_err *err);
/* Checks what is set, without a model. */
KN_MUST_USE int kn_task_check(const struct kn_task *t, struct kn_err *err);

/* The engine's version. A commit after which any task of any model has other pixels raises it: it is in the
 * backend class's digest and in every result's `engine`, so that old pictures and new ones, whose keys are
 * equal, are told apart.
 *     0.1.0
 *     0.2.0  a folder whose two files name different schedulers is of model_index.json's class; DEIS's and
 *            UniPC's solver_type means midpoint with DPM++ 2M */
#define KN_ENGINE_VERSION "0.2.0"

/* The digest of all that fixes the pixels but the backend class; the task must be resolved. SHA-256 over this
 * text, each line ended by one newline, numbers in decimal unless said otherwise:
 *
 *     kiln-key=1
 *     model=<64 lower-case hex digits of model_sha256>
 *     prompt=<bytes>:<the prompt's bytes>
 *     negative=<bytes>:<the negative prompt's bytes, none for 0>
 *     seed=<unsigned>
 *     sampler=<wire value>
 *     schedule=<wire value>
 *     steps=<unsigned>
 *     cfg=<the IEEE binary32's bits, 8 lower-case hex digits; -0 as 0>
 *     size=<width>x<height>
 *
 * Strings carry their length, so that no prompt can pass for other lines. A field added later begins a
 * kiln-key=2, for the tasks that use it: a task has the lowest key that can express it, and every key is
 * computed for ever, since pictures in folders are found by it. */
void kn_task_key(const struct kn_task *t, const uint8_t model_sha256[KN_SHA256_BYTES],
                 uint8_t out[KN_SHA256_BYTES]);

/* Where a result names its pixels (`pixels_sha256`), that is the SHA-256 of the picture's 8-bit RGB samples:
 * width × height × 3 bytes, rows from the top, nothing before, between or behind them. Duplicates are
 * compared by it, and `kiln verify` decodes a file and computes it again. */

/* A1111's `parameters` text: prompt, negative prompt, settings line; `version` is the last value ("kiln
 * 0.1.0"). */
KN_MUST_USE int kn_task_parameters(const struct kn_task *t, const struct kn_model_info *m,
                                   const char *version, struct kn_buf *out);

/* "512x768" -> width, height. */
KN_MUST_USE int kn_size_parse(const char *text, uint32_t *width, uint32_t *height, struct kn_err *err);
/* The nearest of `names` (NULL-terminated) by edit distance if it is near enough to suggest, else NULL. */
const char *kn_suggest(const char *word, const char *const *names);

#endif
