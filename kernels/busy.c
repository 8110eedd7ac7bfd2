/* Measures when the device had work: kiln_engine_busy (kiln.h). Stretches of time between marks in the
 * streams (kx_event), measured from one mark that all are compared with; streams overlap, so the stretches
 * are merged before they are summed. A few hundred bytes a second: they are merged whenever the list is
 * full. */
#include <stdlib.h>

#include "kernels/engine.h"

#define STRETCHES_MAX 4096

struct stretch {
    double from, to; /* ms since the first mark */
};

struct busy {
    pthread_mutex_t lock;
    struct kx_event *zero; /* the unet's stream */
    struct kx_event *from[KX_STAGES], *to[KX_STAGES];
    struct stretch v[STRETCHES_MAX];
    int count;
    double since; /* when the last call was */
};

int kx_busy_create(struct kiln_engine *e, struct kn_err *err) {
    struct kx_ctx *ctx[KX_STAGES] = {e->text, e->unet, e->vae};
    struct busy *b = e->busy = calloc(1, sizeof *b);
    if (!b) return kn_err_set(err, KN_ENOMEM, "out of memory");
    pthread_mutex_init(&b->lock, NULL);
    int rc = kx_event_create(e->unet, &b->zero, err);
    for (int i = 0; i < KX_STAGES && !rc; i++) {
        rc = kx_event_create(ctx[i], &b->from[i], err);
        if (!rc) rc = kx_event_create(ctx[i], &b->to[i], err);
    }
    if (!rc) kx_event_set(e->unet, b->zero);
    return rc ? rc : kx_sync(e->unet, err);
}

void kx_busy_destroy(struct kiln_engine *e) {
    struct busy *b = e->busy;
    if (!b) return;
    struct kx_ctx *ctx[KX_STAGES] = {e->text, e->unet, e->vae};
    for (int i = 0; i < KX_STAGES; i++) {
        kx_event_destroy(ctx[i], b->from[i]);
        kx_event_destroy(ctx[i], b->to[i]);
    }
    kx_event_destroy(e->unet, b->zero);
    pthread_mutex_destroy(&b->lock);
    free(b);
    e->busy = NULL;
}

void kx_busy_from(struct kiln_engine *e, enum kx_stage stage, struct kx_ctx *ctx) {
    if (e->busy) kx_event_set(ctx, e->busy->from[stage]);
}

void kx_busy_to(struct kiln_engine *e, enum kx_stage stage, struct kx_ctx *ctx) {
    if (e->busy) kx_event_set(ctx, e->busy->to[stage]);
}

void kx_busy_note(struct kiln_engine *e, enum kx_stage stage, struct kx_ctx *ctx) {
    if (e->busy) kx_busy_between(e, ctx, e->busy->from[stage], e->busy->to[stage]);
}

static int by_begin(const void *a, const void *b) {
    double x = ((const struct stretch *)a)->from, y = ((const struct stretch *)b)->from;
    return (x > y) - (x < y);
}

/* Stretches that touch become one. */
static void merge(struct busy *b) {
    qsort(b->v, (size_t)b->count, sizeof *b->v, by_begin);
    int kept = 0;
    for (int i = 0; i < b->count; i++) {
        if (kept && b->v[i].from <= b->v[kept - 1].to) {
            if (b->v[i].to > b->v[kept - 1].to) b->v[kept - 1].to = b->v[i].to;
        } else {
            b->v[kept++] = b->v[i];
        }
    }
    b->count = kept;
}

void kx_busy_between(struct kiln_engine *e, struct kx_ctx *ctx, struct kx_event *from, struct kx_event *to) {
    struct busy *b = e->busy;
    if (!b) return;
    struct stretch s = {kx_event_ms(ctx, b->zero, from), kx_event_ms(ctx, b->zero, to)};
    pthread_mutex_lock(&b->lock);
    if (b->count == STRETCHES_MAX) merge(b);
    if (b->count ==
        STRETCHES_MAX) { /* so many gaps: the two oldest stretches and what is between count as one */
        b->v[1].from = b->v[0].from;
        b->v[0] = b->v[--b->count];
    }
    b->v[b->count++] = s;
    pthread_mutex_unlock(&b->lock);
}

void kiln_engine_busy(struct kiln_engine *e, struct kiln_busy *out) {
    struct busy *b = e->busy;
    *out = (struct kiln_busy){0};
    if (!b) return;
    pthread_mutex_lock(&b->lock);
    merge(b);
    double end = b->since;
    for (int i = 0; i < b->count; i++) {
        double from = b->v[i].from > b->since ? b->v[i].from : b->since;
        if (b->v[i].to > from) out->busy_ms += b->v[i].to - from;
        if (b->v[i].to > end) end = b->v[i].to;
    }
    out->span_ms = end - b->since; /* up to the last work: what comes after it has not been measured yet */
    b->since = end;
    b->count = 0;
    pthread_mutex_unlock(&b->lock);
}
