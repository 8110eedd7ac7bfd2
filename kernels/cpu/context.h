/* What the CPU's ops share: the context behind kernels/ops.h. */
#ifndef KILN_KERNELS_CPU_CONTEXT_H
#define KILN_KERNELS_CPU_CONTEXT_H

#include "kernels/cpu/onednn.h"
#include "kernels/cpu/vector.h"
#include "kernels/ops.h"

struct kx_ctx {
    struct kx_ctx *root; /* a lane's is its parent, the root's itself */
    const struct kx_vector *vector;
    struct kx_dnn *dnn;     /* the root's */
    int lane;               /* number of the lane in oneDNN's arguments: 0 for the root, from 1 for lanes */
    int threads;            /* 1 on a lane */
    struct kx_arena *arena; /* borrowed */
    bool planning;
    void *workspace;                /* owns; grows only at a plan's end */
    size_t workspace_bytes, wanted; /* wanted: the largest that an op asked for in this plan */
    int error;                      /* first failure since it was asked for */
    char error_text[256];
    struct kx_ctx *lanes; /* root: `threads` of them; owns */
    char facts[128], name[32];
};

/* Notes the first failure. */
void kx_ctx_fail(struct kx_ctx *ctx, int code, const char *text);
/* While planning: this op will want so many bytes. */
void kx_ctx_want(struct kx_ctx *ctx, size_t bytes);
void *kx_aligned(size_t bytes); /* to 64; released with free() */

/* fn(arg, i) for i < n on the context's threads. */
void kx_parallel(struct kx_ctx *ctx, int n, void (*fn)(void *arg, int i), void *arg);

#endif
