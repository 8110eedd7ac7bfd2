/* oneDNN, and all that differs between its second and third generation (2.6 on Debian 12, 3.x on Debian 13).
 * dnnl.h is seen in onednn.c alone.
 *
 * A product is a convolution of one fixed shape (a matrix product is one with a kernel of 1), made while
 * planning and executed without allocating of ours. It runs on the thread that calls: oneDNN is given a
 * single thread, and threads are ours to spread over (context.h). Several seats may execute the same product
 * at once. */
#ifndef KILN_KERNELS_CPU_ONEDNN_H
#define KILN_KERNELS_CPU_ONEDNN_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct kx_dnn;     /* oneDNN's engine, a stream a seat, and the products made so far */
struct kx_product; /* one shape; its kx_dnn owns it, and gives the same one for the same shape */
struct kx_packed;  /* weights in the layout that a product chose for them */

KN_MUST_USE int kx_dnn_create(int seats, struct kx_dnn **out, struct kn_err *err);
void kx_dnn_destroy(struct kx_dnn *d);
/* Destroys all products, and how many there are. Packed weights live on. */
void kx_dnn_forget(struct kx_dnn *d);
int kx_dnn_count(const struct kx_dnn *d);
/* Version, instruction set and whatever else of oneDNN can move a bit. */
const char *kx_dnn_facts(const struct kx_dnn *d);

struct kx_product_shape {
    int in, out; /* channels */
    int h, w;    /* of the input; a matrix product has its rows in h, and w = 1 */
    int kernel, stride;
    int top, bottom, left, right; /* padding, with zeros */
    int sum;                      /* 1: y += */
};
KN_MUST_USE int kx_product_get(struct kx_dnn *d, const struct kx_product_shape *s, struct kx_product **out,
                               struct kn_err *err);
size_t kx_product_scratch(const struct kx_product *p); /* bytes */
/* x: h × w × in; y: its own height × width × out; bias: out values. */
KN_MUST_USE int kx_product_run(struct kx_product *p, int seat, const float *x,
                               const struct kx_packed *weights, const float *bias, float *y, void *scratch);

/* weights: in PyTorch's order (OIHW, or out × in), copied. */
KN_MUST_USE int kx_packed_create(const struct kx_product *p, const float *weights, struct kx_packed **out,
                                 struct kn_err *err);
void kx_packed_destroy(struct kx_packed *k); /* NULL is fine */
bool kx_packed_fits(const struct kx_packed *k, const struct kx_product *p);
/* Back to PyTorch's order, bit for bit. */
KN_MUST_USE int kx_packed_read(const struct kx_packed *k, float *weights, struct kn_err *err);

#endif
