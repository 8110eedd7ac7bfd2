/* What the CPU's ops share: the context behind kernels/ops.h.
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

#include "kernels/cpu/onednn.h"
#include "kernels/cpu/pool.h"
#include "kernels/cpu/vector.h"
#include "kernels/ops.h"

struct kx_seat {
    int number;
    void *scratch; /* as much as the largest kx_want_scratch of the plans */
};

struct kx_ctx {
    struct kx_ctx *root; /* a lane's is its parent, the root's itself */
    const struct kx_vector *vector;
    struct kx_dnn *dnn;     /* the root's */
    struct kx_pool *pool;   /* the root's; NULL on a lane */
    int threads;            /* 1 on a lane */
    struct kx_seat *seats;  /* `threads` of them; owns. A lane's has the lane's number */
    struct kx_arena *arena; /* borrowed */
    bool planning;
    void *workspace;                      /* owns: the shared part, then a scratch a seat */
    size_t shared_bytes, scratch_bytes;   /* what it has */
    size_t shared_wanted, scratch_wanted; /* the largest that an op asked for in this plan */
    struct kx_layer *layers;              /* root: all that were made from it; borrowed */
    unsigned age;                         /* root: how often the plans were dropped */
    struct kx_ctx *lanes;                 /* root: `threads` of them; owns */
    pthread_mutex_t lock;                 /* root: of the error, which any thread may note */
    int error;                            /* root: first failure since it was asked for */
    char error_text[256];
    char facts[256], name[32];
};

/* Notes the first failure, of the context or of one of its lanes. Any thread. */
void kx_ctx_fail(struct kx_ctx *ctx, int code, const char *text);
/* While planning: this op will want so many bytes of ctx->workspace, and of each seat's scratch. */
void kx_want(struct kx_ctx *ctx, size_t shared_bytes, size_t scratch_bytes);
void *kx_aligned(size_t bytes); /* to 64; released with free() */
static inline size_t kx_round64(size_t bytes) {
    return (bytes + 63) & ~(size_t)63;
}

/* fn(arg, i, seat) for i < n on the context's threads. */
typedef void kx_item(void *arg, int i, const struct kx_seat *seat);
void kx_parallel(struct kx_ctx *ctx, int n, kx_item *fn, void *arg);

#endif
