/* The worker's four threads beside the loop, so that the engine never waits for texts, zlib or the network:
 *
 *     loop ──grants──▶ texts ──▶ denoising ──▶ decoding ──pixels──▶ encoder ──events──▶ loop
 *
 * The first three are the engine's stages: a grant is cut in minibatches that fit, and while one is denoised
 * the next one's texts are encoded and the last one's pictures decoded. An engine without stages (a CPU has
 * nothing to overlap) renders whole grants in the second. The encoder makes PNGs and digests.
 *
 * Each queue is bounded: grants by the worker's credit, minibatches by one between two stages, pixels by
 * bytes, encoded pictures by what the loop gives back with stages_release(). Waiting for the encoder counts
 * as a sign of life of the engine, since the loop may be slow to give room back. Waiting for the engine's
 * next stage does not: that stage may hang.
 *
 * Order: the events of a grant come as STARTED, then one IMAGE or FAILED a task (fewer, if it was stopped),
 * then FINISHED. All functions are called by the loop's thread, but for `wake`, which the stages' threads
 * call. */
#ifndef KILN_WORKER_STAGES_H
#define KILN_WORKER_STAGES_H

#include "worker/engine.h"
#include "worker/grant.h"
#include "worker/uploads.h"

struct stages;

struct stages_options {
    struct engine *engine;      /* borrowed; used by the stages' threads until stages_destroy */
    uint64_t pixel_bytes_max;   /* between engine and encoder; one picture always fits */
    uint64_t unacked_bytes_max; /* encoded and not released; one picture always fits */
    size_t unacked_max;         /* the same as a count */
    void (*wake)(void *ctx);    /* there are events */
    void *ctx;
};

enum stage_event_type { STAGE_STARTED = 1, STAGE_IMAGE, STAGE_FAILED, STAGE_FINISHED };

struct stage_event {
    enum stage_event_type type;
    struct stage_event *next; /* private */
    struct grant *grant;      /* owns a reference */
    uint32_t place;           /* IMAGE, FAILED: of the task in the grant */
    struct upload *upload;    /* IMAGE: owned; take it by setting this to NULL */
    int code;                 /* FAILED, FINISHED: 0 or KN_E… */
    char reason[KN_REASON_MAX + 1];
    uint32_t render_ms, images; /* FINISHED: of the whole grant */
    const uint8_t *rgb;         /* private, as what follows */
    void *kept; /* the engine's, where rgb is: let go with the event; NULL: rgb is the event's own */
    void (*let_go)(void *kept);
    uint32_t width, height;
};

struct stages_progress {
    bool busy;
    uint64_t shard; /* 0: a probe picture */
    kn_id batch;
    uint32_t step, steps, tasks;
    uint32_t minibatch; /* images that the step is of; 0: not known */
    uint32_t age_ms;    /* since the engine gave a sign of life; 0 when it is idle */
    bool has_model;
    kn_digest model_sha256; /* of the last grant */
};

KN_MUST_USE int stages_create(const struct stages_options *opt, struct stages **out, struct kn_err *err);
/* Ends the threads. Blocks until the engine's current call returns: not for an engine that hangs (leave by
 * _exit then). */
void stages_destroy(struct stages *s);

/* Takes a reference. A probe picture goes before what waits; its IMAGE has no upload. KN_ELIMIT: the queue is full.
 * KN_ENOMEM. */
KN_MUST_USE int stages_submit(struct stages *s, struct grant *grant);
/* Takes a grant back. True: its denoising had not begun, and no event of it will come. */
bool stages_withdraw(struct stages *s, const struct grant *grant);
/* Stops it if it runs: FINISHED comes with KN_ECANCELED, as soon as the engine looks up. */
void stages_abort(struct stages *s, const struct grant *grant);
/* The next event or NULL; the caller frees it. */
struct stage_event *stages_next(struct stages *s);
void stage_event_free(struct stage_event *e); /* NULL is fine */
/* A picture of so many bytes is not kept any more. */
void stages_release(struct stages *s, size_t bytes);
void stages_progress(struct stages *s, struct stages_progress *out);

#endif
