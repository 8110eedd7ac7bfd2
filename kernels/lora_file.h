/* A LoRA's file against a model: which layers it changes, by which matrices, and how strongly. Names and forms:
 * lora_file.c. Of the model it reads its layers' names and shapes, never their values. Any thread, one file at a
 * time. */
#ifndef KILN_KERNELS_LORA_FILE_H
#define KILN_KERNELS_LORA_FILE_H

#include "base/fs.h"
#include "kernels/engine.h"
#include "kernels/io/safetensors.h"
#include "kernels/lora_config.h"
#include "kernels/models/load.h"

#define KX_LORA_NETWORKS (1 + ENCODERS_MAX) /* the UNet, then the text encoders */

enum kx_lora_role { KX_LORA_DOWN, KX_LORA_UP, KX_LORA_ALPHA, KX_LORA_ROLES };

/* One layer's change: scale · up · down. */
struct kx_lora_delta {
    int network;
    char name[KX_TENSOR_NAME_MAX]; /* flat */
    const char *key;               /* the first of its tensors' names; borrowed */
    struct kx_part *part;          /* borrowed from the model; NULL: a layer that is never run */
    int rows, columns;             /* the layer's */
    const struct kx_weight *w[KX_LORA_ROLES];
    float scale; /* by alpha and rank */
};

struct kx_lora_file {
    const char *path; /* borrowed */
    struct kx_weights *weights;
    struct kx_lora_delta *v; /* owns */
    int count, cap;
    int unused;                         /* of them without a part */
    char config_file[KN_PATH_MAX + 64]; /* as messages name it */
    struct kx_json config;              /* PEFT's; o NULL: there is none */
    bool one_for_all;                   /* its keys have no prefix: it is of every network in the file */
    const char *prefixed;               /* a key that names its network; NULL: none does */
};

/* Reads the whole file: a key that fits no layer, a value that is not finite, a form or an option that is not
 * applied is an error with file and key (KN_EPARSE, KN_EUNSUPPORTED). *f must be closed whatever comes. */
KN_MUST_USE int kx_lora_open(struct kiln_model *m, const char *path, struct kx_lora_file *f,
                             struct kn_err *err);
void kx_lora_close(struct kx_lora_file *f);
/* to += times · d's scale · up · down; to has the layer's rows × columns. */
KN_MUST_USE int kx_lora_add(const struct kx_lora_delta *d, float times, float *to, struct kn_err *err);

/* The parts of a network (0: the UNet); NULL: the model has no such network. */
struct kx_parts *kx_lora_parts(struct kiln_model *m, int network);
/* Its folder's name. */
extern const char *const kx_lora_folders[KX_LORA_NETWORKS];

#endif
