/* farm_step: hands each event to the floor that it is for, then lets the scheduler look. The contract is
 * farm.h; state.h tells what lives where. */
#include "coordinator/core/farm.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/planted.h"
#include "coordinator/core/batch.h"
#include "coordinator/core/blame.h"
#include "coordinator/core/commit.h"
#include "coordinator/core/control.h"
#include "coordinator/core/fleet.h"
#include "coordinator/core/health.h"
#include "coordinator/core/name.h"
#include "coordinator/core/pending.h"
#include "coordinator/core/report.h"
#include "coordinator/core/sched.h"
#include "coordinator/core/state.h"
#include "coordinator/core/tail.h"
#include "coordinator/core/worker.h"

void farm_config_default(struct farm_config *c) {
    *c = (struct farm_config){
        .term = 1,
        .silence_ms = 10000,
        .ask_ms = 2000,
        .progress_ms = 330000,
        .shard_target_ms = 4000,
        .charges_max = 3,
        .worker_faults_max = 5,
    };
}

int farm_create(const struct farm_config *c, struct farm **out) {
    if (c->silence_ms == 0 || c->progress_ms == 0 || c->shard_target_ms == 0 || c->charges_max == 0 ||
        c->worker_faults_max == 0)
        return KN_EINVAL;
    struct farm *f = calloc(1, sizeof *f);
    if (!f) return KN_ENOMEM;
    f->config = *c;
    f->wait_head = f->wait_tail = f->trouble_head = f->trouble_tail = NONE;
    slab_init(&f->shapes, sizeof(struct shape), UINT32_MAX - 1);
    slab_init(&f->shards, sizeof(struct shard), UINT32_MAX - 1);
    slab_init(&f->pieces, sizeof(struct piece), UINT32_MAX - 1);
    slab_init(&f->troubles, sizeof(struct trouble), UINT32_MAX - 1);
    slab_init(&f->faults, sizeof(struct fault), UINT32_MAX - 1);
    slab_init(&f->pendings, sizeof(struct pending), UINT32_MAX - 1);
    f->batch_by_id = kn_map_create(KN_BATCHES_MAX);
    f->worker_by_name = kn_map_create(KN_WORKERS_MAX);
    f->worker_by_conn = kn_map_create(KN_WORKERS_MAX);
    f->model_by_digest = kn_map_create(SIZE_MAX);
    f->shape_by_key = kn_map_create(SIZE_MAX);
    f->pin_by_name = kn_map_create(KN_BATCHES_MAX);
    if (!f->batch_by_id || !f->worker_by_name || !f->worker_by_conn || !f->model_by_digest ||
        !f->shape_by_key || !f->pin_by_name) {
        farm_destroy(f);
        return KN_ENOMEM;
    }
    *out = f;
    return KN_OK;
}

void farm_destroy(struct farm *f) {
    if (!f) return;
    for (uint32_t i = 0; i < f->shards.total; i++)
        if (f->shards.chunks) free(((struct shard *)slab_at(&f->shards, i))->tasks);
    for (uint32_t i = 0; i < f->pendings.total; i++)
        free(((struct pending *)slab_at(&f->pendings, i))->reason);
    for (size_t i = 0; i < f->batch_count; i++) {
        struct batch *b = f->batches[i];
        for (uint32_t l = 0; l < b->lane_count; l++) b->lanes[l].pool->ready_count = 0;
    }
    for (size_t i = 0; i < f->worker_count; i++) {
        f->workers[i]->counted = false;
        fleet_worker_destroy(f, f->workers[i]);
    }
    for (size_t i = 0; i < f->batch_count; i++) batch_destroy(f, f->batches[i]);
    for (uint32_t i = 0; i < f->level_count; i++) free(f->levels[i]);
    for (uint32_t i = 0; i < f->backend_count; i++) free(f->backends[i].name);
    free(f->batches);
    free(f->workers);
    free(f->levels);
    free(f->order);
    free(f->tail);
    kn_map_destroy(f->batch_by_id);
    kn_map_destroy(f->worker_by_name);
    kn_map_destroy(f->worker_by_conn);
    kn_map_destroy(f->model_by_digest);
    kn_map_destroy(f->shape_by_key);
    kn_map_destroy(f->pin_by_name);
    slab_fini(&f->shapes);
    slab_fini(&f->shards);
    slab_fini(&f->pieces);
    slab_fini(&f->troubles);
    slab_fini(&f->faults);
    slab_fini(&f->pendings);
    free(f);
}

/* ---- one event */

static int tick(struct farm *f, struct farm_effects *fx) {
    fleet_sweep(f, fx);
    pending_retry(f, fx);
    batch_state_retry(f, fx);
    health_sweep(f, fx);
    blame_sweep(f, fx);
    f->work_arrived = true; /* workers that were not worth a shard may be now */
    return KN_OK;
}

static int batch_event(struct farm *f, const struct farm_event *ev, struct farm_effects *fx) {
    struct batch *b = batch_find(f, ev->u.batch.id);
    if (!b) return KN_ENOENT;
    switch (ev->type) {
    case EV_BATCH_CANCEL:
        return control_cancel(f, b, fx);
    case EV_BATCH_PAUSE:
        return control_pause(f, b, fx);
    case EV_BATCH_RESUME:
        return control_resume(f, b, fx);
    case EV_BATCH_RETRY:
        return control_retry(f, b, fx);
    case EV_BATCH_PRIORITY:
        return control_priority(f, b, ev->u.batch.priority, fx);
    default:
        return control_remove(f, b, fx);
    }
}

static int worker_event(struct farm *f, const struct farm_event *ev, struct farm_effects *fx) {
    struct worker *w = worker_by_conn(f, ev->conn);
    if (!w) {
        if (ev->type == EV_WORKER_GONE) {
            name_forget(f, ev->conn);
            return KN_OK;
        }
        int rc = fx_reserve(fx, 1);
        if (rc) return rc;
        fx_add(fx, FX_HELLO_AGAIN)->conn = ev->conn;
        return KN_OK;
    }
    if (ev->type == EV_WORKER_GONE) return fleet_gone(f, w, ev, fx);
    w->seen_ms = f->now;
    int rc;
    switch (ev->type) {
    case EV_PROBED:
        rc = health_probed(f, w, &ev->u.probed, fx);
        blame_sweep(f, fx); /* verdicts waited for it */
        return rc;
    case EV_WORKER_HEARTBEAT:
        return fleet_heartbeat(f, w, &ev->u.heartbeat, fx);
    case EV_SHARD_STARTED:
        return report_started(f, w, &ev->u.shard, fx);
    case EV_SHARD_RETURNED:
        return report_returned(f, w, &ev->u.shard, fx);
    case EV_SHARD_DONE:
        return report_done(f, w, &ev->u.shard, fx);
    default:
        return report_failed(f, w, &ev->u.task_failed, fx);
    }
}

static int stored(struct farm *f, const struct ev_stored *s, struct farm_effects *fx) {
    if (s->what != FX_BATCH_STATE) return commit_stored(f, s, fx);
    struct batch *b = batch_find(f, s->batch);
    if (!b) return KN_OK;
    int rc = fx_reserve(fx, 4);
    if (rc) return rc;
    if (s->code == KN_ETERM && !KN_PLANTED(TERM_NOT_HEEDED)) f->deposed = true;
    batch_state_stored(f, b, s->code, fx);
    return KN_OK;
}

static int objects_lost(struct farm *f, const struct ev_objects_lost *e, struct farm_effects *fx) {
    struct batch *b = batch_find(f, e->batch);
    return b ? control_lost(f, b, e->tasks, e->count, fx) : KN_ENOENT;
}

int farm_step(struct farm *f, const struct farm_event *ev, uint64_t now_ms, struct farm_effects *fx) {
    assert(now_ms >= f->now);
    f->now = now_ms;
    int rc = KN_EINVAL;
    switch (ev->type) {
    case EV_TICK:
        rc = tick(f, fx);
        break;
    case EV_BATCH_OPEN:
        rc = batch_open(f, &ev->u.batch_open, fx);
        break;
    case EV_BATCH_CANCEL:
    case EV_BATCH_PAUSE:
    case EV_BATCH_RESUME:
    case EV_BATCH_RETRY:
    case EV_BATCH_PRIORITY:
    case EV_BATCH_REMOVE:
        rc = batch_event(f, ev, fx);
        break;
    case EV_WORKER_HELLO:
        rc = fleet_hello(f, ev->conn, &ev->u.hello, fx);
        break;
    case EV_WORKER_DRAIN:
        rc = fleet_drain(f, ev->u.drain.worker, ev->u.drain.exit, fx);
        break;
    case EV_WORKER_HEARTBEAT:
    case EV_WORKER_GONE:
    case EV_SHARD_STARTED:
    case EV_SHARD_RETURNED:
    case EV_SHARD_DONE:
    case EV_TASK_FAILED:
    case EV_PROBED:
        rc = worker_event(f, ev, fx);
        break;
    case EV_RESULT:
        rc = commit_result(f, ev->conn, &ev->u.result, fx);
        break;
    case EV_RESULT_BAD:
        rc = report_bad(f, &ev->u.result_bad, fx);
        break;
    case EV_STORED:
        rc = stored(f, &ev->u.stored, fx);
        break;
    case EV_OBJECTS_LOST:
        rc = objects_lost(f, &ev->u.objects_lost, fx);
        break;
    }
    fleet_holds(f, fx);
    fleet_rivals(f, fx);
    sched_run(f, fx);
    tail_run(f, fx);
    return rc;
}

uint64_t farm_next_tick(const struct farm *f, uint64_t now_ms) {
    if (f->shard_count > 0 || f->wait_head != NONE || f->trouble_head != NONE || f->rival_count > 0)
        return now_ms + TAIL_EVERY_MS;
    return now_ms + 500;
}
