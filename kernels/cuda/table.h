/* Which variant of an op runs for which shape on which architecture: a table that ships, never tuned at run
 * time. Its digest is part of the backend's facts, since another variant is another order of sums.
 *
 * A choice depends on an image's own shape (never on the number of images) and on the architecture. A variant
 * that is not there (no library, or a shape that it cannot do) falls back to our own kernel, by shape again.
 *
 * The format, for the table in table.c and for a file that $KILN_CUDA_TABLE names (for benchmarks: it
 * replaces the table, and the digest follows it). A line is a rule; the first that fits wins; where none
 * fits, the variant is "own". `#` begins a comment.
 *
 *     OP SM [NAME=RANGE …] VARIANT
 *
 *     OP       conv | linear | attention
 *     SM       a range of compute capabilities: 80, 89-90, 90-
 *     NAME     conv:      kernel stride upsample (0, 1) in out pixels (of y, of one image)
 *              linear:    in out rows (of one image) act (none silu gelu quick_gelu geglu: a word, no range)
 *              attention: dim rows length
 *     RANGE    8 (that value), 8-64, 8- (8 and more), -64 (64 and less)
 *     VARIANT  own | sm90 | cublaslt | cudnn
 *
 * cublaslt does linear layers and convolutions of kernel 1, stride 1, without upsampling; cudnn does
 * convolutions; sm90 is our kernels for Hopper. A rule that names a variant for an op that it does not do is
 * an error. */
#ifndef KILN_KERNELS_CUDA_TABLE_H
#define KILN_KERNELS_CUDA_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "kernels/ops.h"

enum kx_variant { KX_VARIANT_OWN, KX_VARIANT_SM90, KX_VARIANT_CUBLASLT, KX_VARIANT_CUDNN, KX_VARIANT_COUNT };
enum kx_variant_op { KX_VARIANT_CONV, KX_VARIANT_LINEAR, KX_VARIANT_ATTENTION };

#define KX_VARIANTS_RULES_MAX 256
#define KX_VARIANTS_TEXT_MAX 65536 /* bytes of an override file */
#define KX_VARIANTS_DIGEST 17      /* 16 hex digits and a 0 */

struct kx_variants;

/* The shipped table, or $KILN_CUDA_TABLE's file, for devices of capability sm (90 is 9.0). KN_ENOMEM,
 * KN_EPARSE (with file and line), KN_ENOENT, KN_EIO, KN_ELIMIT. */
KN_MUST_USE int kx_variants_create(int sm, struct kx_variants **out, struct kn_err *err);
/* The same from text, which is copied from; `name` is for messages. */
KN_MUST_USE int kx_variants_parse(const char *name, const char *text, int sm, struct kx_variants **out,
                                  struct kn_err *err);
void kx_variants_destroy(struct kx_variants *v); /* NULL is fine */
/* Of the rules, comments and spaces left out. */
const char *kx_variants_digest(const struct kx_variants *v);

/* pixels: h · w of y, of one image. */
enum kx_variant kx_variant_conv(const struct kx_variants *v, const struct kx_conv_shape *s, int64_t pixels);
/* rows: of one image. */
enum kx_variant kx_variant_linear(const struct kx_variants *v, int in, int out, enum kx_act act,
                                  int64_t rows);
enum kx_variant kx_variant_attention(const struct kx_variants *v, int dim, int rows, int length);

#endif
