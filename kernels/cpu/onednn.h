/* oneDNN, and all that differs between its second and third generation (2.6 on Debian 12, 3.x on Debian 13).
 * dnnl.h is seen in onednn.c alone.
 *
 * A product is a convolution, or a matrix product, of fixed shape with weights in the layout that oneDNN
 * chose for it. It is made while planning and executed without allocating. Several lanes may execute the same
 * product at once, each with its own number. */
#ifndef KILN_KERNELS_CPU_ONEDNN_H
#define KILN_KERNELS_CPU_ONEDNN_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct kx_dnn;     /* oneDNN's engine and a stream for each lane */
struct kx_product; /* one shape */

KN_MUST_USE int kx_dnn_create(int lanes, struct kx_dnn **out, struct kn_err *err);
void kx_dnn_destroy(struct kx_dnn *d);
/* "onednn 2.6.3 avx2" */
const char *kx_dnn_facts(const struct kx_dnn *d);

struct kx_product_shape {
    int in, out;        /* channels */
    int h, w;           /* of the input; a matrix product has its rows in h, and w = 1 */
    int kernel, stride; /* padding is kernel / 2 */
    bool bias, sum;     /* sum: y += */
};
/* Made for `threads` threads; execute with as many. KN_EUNSUPPORTED, KN_ENOMEM. */
KN_MUST_USE int kx_product_create(struct kx_dnn *d, const struct kx_product_shape *s, int threads,
                                  struct kx_product **out, struct kn_err *err);
void kx_product_destroy(struct kx_product *p);
size_t kx_product_workspace(const struct kx_product *p);    /* bytes, aligned to 64 */
size_t kx_product_weight_bytes(const struct kx_product *p); /* packed */
bool kx_product_same_weights(const struct kx_product *a, const struct kx_product *b);
/* Re-lays weights: from PyTorch's order (from NULL: OIHW, or out × in), or from another product's packed
 * ones. */
KN_MUST_USE int kx_product_pack(struct kx_product *p, const struct kx_product *from, const float *weights,
                                float *packed, struct kn_err *err);
/* All aligned to 64 bytes where the caller can; bias has `out` values, or is NULL. */
KN_MUST_USE int kx_product_run(struct kx_product *p, int lane, const float *x, const float *weights,
                               const float *bias, float *y, void *workspace);

#endif
