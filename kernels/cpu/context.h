/* The common ground of the CPU's ops: the context behind kernels/ops.h.
 *
 * How work is cut. Every op cuts its work in items by the shape alone, never by the number of threads, and an
 * item is always computed by one thread in one order: so a result has the same bits on any number of threads,
 * and on a lane. oneDNN is given one thread for the same reason.
 *
 * A seat is what one thread needs for an item: its number, by which oneDNN's arguments are kept apart, and a
 * scratch memory of its own. */
#ifndef KILN_KERNELS_CPU_CONTEXT_H
#define KILN_KERNELS_CPU_CONTEXT_H

#include <pthread.h>

#include "kernels/backend.h"
#include "kernels/cpu/onednn.h"
#include "kernels/cpu/pool.h"
#include "kernels/cpu/vector.h"

struct kx_seat {
    int number;
    void *scratch; /* as large as the largest that an op of the plans wants (kx_want) */
};

struct kx_cpu {
    struct kx_ctx base;  /* first: a kx_ctx * is a kx_cpu * */
    struct kx_cpu *root; /* a lane's is its parent, the root's itself */
    const struct kx_vector *vector;
    struct kx_dnn *dnn;                   /* the root's */
    struct kx_pool *pool;                 /* the root's; NULL on a lane */
    int threads;                          /* 1 on a lane */
    struct kx_seat *seats;                /* `threads` of them; owns. A lane's has the lane's number */
    void *workspace;                      /* owns: the shared part, then a scratch a seat */
    size_t shared_bytes, scratch_bytes;   /* what it has */
    size_t shared_wanted, scratch_wanted; /* the largest that an op asked for in this plan */
    struct kx_layer *layers;              /* root: all that were made from it; borrowed */
    unsigned plan_generation;             /* root: how often the plans were dropped */
    size_t room;                          /* root: kx_cpu_ctx_room */
    struct kx_cpu *lanes;                 /* root: `threads` of them; owns */
    pthread_mutex_t lock;                 /* root: of the error, which any thread may note */
    int error;                            /* root: first failure since it was asked for */
    char error_text[256];
    char facts[256], name[32];
};

static inline struct kx_cpu *kx_cpu_of(struct kx_ctx *ctx) {
    return (struct kx_cpu *)ctx;
}

/* Notes the first failure, of the context or of one of its lanes. Any thread. */
void kx_cpu_fail(struct kx_cpu *ctx, int code, const char *text);
/* While planning: notes that an op will want so many bytes of ctx->workspace, and of each seat's scratch. */
void kx_want(struct kx_cpu *ctx, size_t shared_bytes, size_t scratch_bytes);
void *kx_aligned(size_t bytes); /* to 64; released with free() */
static inline size_t kx_round64(size_t bytes) {
    return (bytes + 63) & ~(size_t)63;
}

/* fn(arg, i, seat) for i < n on the context's threads. */
typedef void kx_item(void *arg, int i, const struct kx_seat *seat);
void kx_parallel(struct kx_cpu *ctx, int n, kx_item *fn, void *arg);

/* How work is cut in stretches: as many of `each` as cover n; rows of c floats a stretch, about 32 KiB, in
 * whole multiples of 16 rows. */
static inline size_t kx_stretches(size_t n, size_t each) {
    return (n + each - 1) / each;
}
static inline size_t kx_least(size_t a, size_t b) {
    return a < b ? a : b;
}
static inline size_t kx_rows_each(size_t c) {
    size_t n = 8192 / (c ? c : 1) / 16 * 16;
    return n < 16 ? 16 : n;
}

/* ---- op_conv.c: a layer with weights is what a kx_conv and a kx_linear are */

struct kx_layer;
struct kx_layer_shape {
    int in, out, kernel, stride;
    bool upsample;
    enum kx_act act;
};
const struct kx_layer_shape *kx_layer_shape(const struct kx_layer *l);
/* Drops the plans of every layer that was made from the context, for all sizes. */
void kx_layers_forget(struct kx_cpu *ctx);

/* The backend's functions, of the types of kernels/ops.h. */
#define KX_CPU_DECLARE(op, ...) __typeof__(kx_##op) kx_cpu_##op;
KX_BACKEND_OPS(KX_CPU_DECLARE)
#undef KX_CPU_DECLARE

#endif
