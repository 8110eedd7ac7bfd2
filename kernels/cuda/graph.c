/* Recordings (CUDA graphs) and events. See kernels/ops.h and kernels/cuda/context.h.
 *
 * The first time the ops run one by one: kernels are loaded then, and libraries make what they make at their
 * first call. The second time they are captured, and from then on replayed. Ops that cannot be
 * captured are run one by one for ever, with a note that says why. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/context.h"

struct kx_recording {
    cudaGraphExec_t graph;                          /* owns; NULL: none yet, or none possible */
    unsigned plan_generation, workspace_generation; /* the context's when it was made */
    bool refused;                                   /* it could not be captured */
};

struct kx_event {
    cudaEvent_t e; /* owns */
    bool set;
};

static void drop_graph(struct kx_gpu *g, struct kx_recording *r) {
    if (r->graph && kx_gpu_drain(g, "replay")) (void)cudaGraphExecDestroy(r->graph); /* may be running */
    r->graph = NULL;
}

/* After it the stream takes work again, whatever it returns. */
static cudaError_t end_capture(struct kx_gpu *g, cudaGraph_t *graph) {
    cudaError_t e = cudaStreamEndCapture(g->stream, graph);
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    if (e != cudaSuccess && cudaStreamIsCapturing(g->stream, &status) == cudaSuccess &&
        status != cudaStreamCaptureStatusNone)
        (void)cudaStreamEndCapture(g->stream, graph);
    return e;
}

/* Captures all that fn launches as a graph. NULL: the reason is in the context's note, and nothing was
 * launched. An op's failure is not told (fn may have asked for it already): it comes again when the ops are
 * run one by one. */
static cudaGraphExec_t capture(struct kx_gpu *g, void (*fn)(void *arg), void *arg) {
    cudaGraph_t graph = NULL;
    cudaGraphExec_t out = NULL;
    unsigned failures = g->failures;
    cudaError_t e = cudaStreamBeginCapture(g->stream, cudaStreamCaptureModeThreadLocal);
    if (e == cudaSuccess) {
        g->capturing = true;
        fn(arg);
        g->capturing = false;
        e = end_capture(g, &graph);
        g->error = 0;
    }
    bool whole = g->failures == failures;
    if (e == cudaSuccess && whole) e = cudaGraphInstantiate(&out, graph, 0);
    if (graph) (void)cudaGraphDestroy(graph);
    if (e == cudaSuccess && whole) return out;
    (void)cudaGetLastError();
    snprintf(g->note, sizeof g->note, "%.100s%s%s", whole ? "" : g->error_text, whole ? "" : "; ",
             e == cudaSuccess ? "" : cudaGetErrorString(e));
    return NULL;
}

static bool current(const struct kx_gpu *g, const struct kx_recording *r) {
    return r->plan_generation == g->plan_generation && r->workspace_generation == g->workspace_generation;
}

void kx_gpu_replay(struct kx_ctx *ctx, struct kx_recording **recording, void (*fn)(void *arg), void *arg) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    assert(!g->capturing);
    if (g->base.planning || !kx_gpu_enter(g)) {
        fn(arg); /* counts, or does nothing */
        return;
    }
    struct kx_recording *r = *recording;
    if (r && !current(g, r)) drop_graph(g, r);
    if (!r || !current(g, r)) {
        if (!r && !(r = *recording = calloc(1, sizeof *r))) {
            kx_gpu_fail(g, KN_ENOMEM, "out of memory");
            return;
        }
        *r = (struct kx_recording){.plan_generation = g->plan_generation,
                                   .workspace_generation = g->workspace_generation};
        fn(arg);
        return;
    }
    if (!r->graph && !r->refused && !g->error) r->refused = !(r->graph = capture(g, fn, arg));
    if (r->graph)
        kx_gpu_ok(g, cudaGraphLaunch(r->graph, g->stream), "replay");
    else
        fn(arg);
}

void kx_gpu_recording_destroy(struct kx_ctx *ctx, struct kx_recording *r) {
    drop_graph(kx_gpu_of(ctx), r);
    free(r);
}

/* ---- events */

int kx_gpu_event_create(struct kx_ctx *ctx, struct kx_event **out, struct kn_err *err) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    *out = NULL;
    struct kx_event *e = calloc(1, sizeof *e);
    if (!e) return kn_err_set(err, KN_ENOMEM, "out of memory");
    if (kx_gpu_enter(g)) kx_gpu_ok(g, cudaEventCreate(&e->e), "event");
    int rc = kx_gpu_ctx_error(ctx, err);
    if (rc)
        free(e);
    else
        *out = e;
    return rc;
}

void kx_gpu_event_destroy(struct kx_ctx *ctx, struct kx_event *e) {
    if (kx_gpu_enter(kx_gpu_of(ctx))) (void)cudaEventDestroy(e->e);
    free(e);
}

void kx_gpu_event_set(struct kx_ctx *ctx, struct kx_event *e) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    assert(!g->capturing && !g->base.planning);
    if (kx_gpu_enter(g)) e->set = kx_gpu_ok(g, cudaEventRecord(e->e, g->stream), "event");
}

double kx_gpu_event_ms(struct kx_ctx *ctx, struct kx_event *from, struct kx_event *to) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    float ms = 0;
    if (!from->set || !to->set || !kx_gpu_enter(g)) return 0;
    return kx_gpu_ok(g, cudaEventElapsedTime(&ms, from->e, to->e), "event") ? (double)ms : 0;
}

int kx_gpu_event_wait(struct kx_ctx *ctx, struct kx_event *e, int timeout_ms, struct kn_err *err) {
    struct kx_gpu *g = kx_gpu_of(ctx);
    int rc = !kx_gpu_dead(g->device) && e->set ? kx_gpu_wait(g, e->e, timeout_ms, "waiting") : 0;
    if (rc == KN_ETIMEOUT)
        return kn_err_set(err, KN_ETIMEOUT, "%s (device %d): not done after %d ms", g->device->facts.name,
                          g->device->index, timeout_ms);
    return rc || kx_gpu_dead(g->device) ? kx_gpu_ctx_error(ctx, err) : 0;
}
