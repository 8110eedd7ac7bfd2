/* Named tensors of one component (a folder with *.safetensors, one file or sharded with an index), mapped,
 * not read. Every offset, shape and length of the file is checked as if an enemy wrote it. Format:
 * huggingface/safetensors. */
#ifndef KILN_KERNELS_SAFETENSORS_H
#define KILN_KERNELS_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

enum kx_dtype { KX_F32, KX_F16, KX_BF16, KX_I32, KX_I64, KX_U8 };

#define KX_NDIM_MAX 8

struct kx_weight {
    const char *name; /* borrowed from the kx_weights */
    enum kx_dtype dtype;
    int ndim;
    int64_t shape[KX_NDIM_MAX];
    const void *data; /* mapped, little-endian, maybe unaligned; borrowed until kx_weights_close */
    size_t bytes;
    bool mapped; /* a file's, not the caller's memory */
    const char
        *file; /* as messages name it: in the folder that was opened, or the path; borrowed as name is */
};

struct kx_weights;

/* dir/stem.safetensors, or dir/stem.safetensors.index.json with its parts ("model",
 * "diffusion_pytorch_model"); a variant such as stem.fp16.safetensors is taken when nothing else is there. */
KN_MUST_USE int kx_weights_open(const char *dir, const char *stem, struct kx_weights **out,
                                struct kn_err *err);
/* One file. */
KN_MUST_USE int kx_weights_open_file(const char *path, struct kx_weights **out, struct kn_err *err);
void kx_weights_close(struct kx_weights *w);
/* A text of the file's __metadata__ (of the first part's, where there are several); NULL: there is none. Some
 * writers store numbers there, which are no texts and are passed over. */
const char *kx_weights_metadata(const struct kx_weights *w, const char *key);
/* Calls each(ctx, path) for every file that kx_weights_open would map, the index first; stops at a non-zero
 * answer and returns it. */
KN_MUST_USE int kx_weights_files(const char *dir, const char *stem,
                                 int (*each)(void *ctx, const char *path, struct kn_err *err), void *ctx,
                                 struct kn_err *err);
/* The tensors of one file's bytes (borrowed until close), as kx_weights_open reads a file; `name` stands for
 * it in messages. */
KN_MUST_USE int kx_weights_parse(const void *data, size_t len, const char *name, struct kx_weights **out,
                                 struct kn_err *err);
size_t kx_weights_count(const struct kx_weights *w);
const struct kx_weight *kx_weights_at(const struct kx_weights *w, size_t i);
/* NULL: not there. */
const struct kx_weight *kx_weights_find(const struct kx_weights *w, const char *name);
/* Converts to f32, in the file's order; out has room for the product of the shape. Lets go of the tensor's
 * mapped pages behind itself, so that a model that is being loaded is not in memory twice; it can be read
 * again. KN_EUNSUPPORTED for integers. */
KN_MUST_USE int kx_weight_f32(const struct kx_weight *w, float *out);
/* The same for what a network computes with: a value that is NaN or infinite is refused too (KN_EPARSE), and
 * err names the file and the tensor. */
KN_MUST_USE int kx_weight_read(const struct kx_weight *w, float *out, struct kn_err *err);
/* Writes a file of f32/i32 tensors (kiln-render --dump). */
struct kx_dump;
KN_MUST_USE int kx_dump_create(struct kx_dump **out);
KN_MUST_USE int kx_dump_add(struct kx_dump *d, const char *name, enum kx_dtype dtype, const int64_t *shape,
                            int ndim, const void *data); /* copies */
KN_MUST_USE int kx_dump_write(struct kx_dump *d, const char *path, struct kn_err *err);
void kx_dump_destroy(struct kx_dump *d);

#endif
