/* See explain.h. */
#include "coordinator/explain.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "coordinator/waits.h"

/* ---- the status of a batch */

void loadings_of(struct server *s, struct loadings *out) {
    out->count = 0;
    for (size_t i = 0; i < farm_worker_count(s->farm) && out->count < LOADINGS_MAX; i++) {
        struct farm_worker_view v;
        if (farm_worker_at(s->farm, i, kn_clock_ms(), &v) != 0 || !v.has_batch) continue;
        const struct known_worker *w = kn_map_get(s->workers, v.worker, strlen(v.worker));
        if (!w || !w->loading[0]) continue;
        memcpy(out->v[out->count].batch, v.batch, sizeof(kn_id));
        out->v[out->count++].worker = w;
    }
}

/* A person's wish shows once the store has it: what is shown is not taken back by a crash. That every task has
 * ended follows from the tasks' own records. */
static enum kn_batch_state shown_state(const struct server *s, const struct kept_batch *b,
                                       const struct farm_batch_view *v) {
    return v->state == KN_BATCH_DONE || farm_batch_settled(s->farm, v->id) ? v->state : b->state;
}

void status_of(struct server *s, const struct kept_batch *b, const struct farm_batch_view *v,
               const struct loadings *loadings, bool with_request, struct status *out) {
    struct kn_batch_status *r = &out->s;
    *r = (struct kn_batch_status){.name = b->begin->name,
                                  .request = with_request ? b->begin->request : "",
                                  .state = shown_state(s, b, v),
                                  .total = v->total,
                                  .done = v->done,
                                  .failed = v->failed,
                                  .cancelled = v->cancelled,
                                  .queued = v->queued,
                                  .running = v->running,
                                  .images_per_s = v->images_per_s,
                                  .images_per_s_mean = v->images_per_s_mean,
                                  .eta_ms = v->eta_ms,
                                  .created_wall_ms = b->created_wall_ms,
                                  .finished_wall_ms = b->finished_wall_ms,
                                  .priority = v->priority,
                                  .progress = v->progress,
                                  .steps_per_s = v->steps_per_s,
                                  .loading = "",
                                  .wait_text = out->text};
    memcpy(r->batch, v->id, sizeof r->batch);
    r->wait = waits_batch(s, v, out->text);
    r->held = v->held && r->wait == KN_WAIT_HELD;
    if (r->wait) { /* nothing moves: no speed and no time left would be true */
        r->images_per_s = r->steps_per_s = 0;
        r->eta_ms = -1;
    }
    for (size_t i = 0; i < loadings->count && !r->loading[0]; i++) {
        if (memcmp(loadings->v[i].batch, v->id, sizeof(kn_id)) != 0) continue;
        r->loading = loadings->v[i].worker->loading;
        r->loading_bytes = loadings->v[i].worker->loading_bytes;
    }
}

/* ---- kiln explain */

static void left_in(int64_t ms, char out[64]) {
    if (ms < 0)
        snprintf(out, 64, "nobody can tell when");
    else
        snprintf(out, 64, "in about %lld s", (long long)((ms + 999) / 1000));
}

/* A task's state in a word, and the rest in a sentence. */
static void explain_task(struct server *s, struct explanation *x, const struct kept_batch *b, uint32_t task,
                         const struct farm_task_view *v) {
    struct kn_explain_reply *r = &x->reply;
    struct store_record rec;
    const struct batch_failure *f;
    char left[64];
    left_in(x->status.s.eta_ms, left);
    switch (v->state) {
    case TASK_QUEUED:
        r->task_state = "queued";
        if (x->status.s.wait)
            snprintf(x->text, sizeof x->text, "%s", x->status.text);
        else
            snprintf(x->text, sizeof x->text, "it waits its turn%s; its batch is through %s",
                     v->suspect ? ", to be rendered alone: it failed, or shared a worker's end" : "", left);
        if (!x->status.s.wait && v->unfit > 0) {
            char unfit[UNFIT_TEXT_MAX];
            size_t used = strlen(x->text);
            waits_unfit(s, v->unfit_worker, v->unfit_lacks, unfit, sizeof unfit);
            snprintf(x->text + used, sizeof x->text - used, "; %u worker%s cannot render it: %s%s", v->unfit,
                     v->unfit == 1 ? "" : "s", unfit, v->unfit == 1 ? "" : ", among others");
        }
        break;
    case TASK_GRANTED:
        r->task_state = v->started ? "running" : "handed out";
        if (v->started)
            snprintf(
                x->text, sizeof x->text,
                "worker %s is at step %u of %u of the %u image%s that it was given with it; its batch is "
                "through %s",
                v->worker, v->step, v->steps, v->shard_tasks, v->shard_tasks == 1 ? "" : "s", left);
        else
            snprintf(x->text, sizeof x->text, "worker %s has it and will begin it next", v->worker);
        break;
    case TASK_COMMITTING:
    case TASK_FAILING:
        r->task_state = "saving";
        snprintf(x->text, sizeof x->text, "%s",
                 x->status.s.wait ? x->status.text : "it is rendered, and is being written down");
        break;
    case TASK_DONE:
        r->task_state = "done";
        if (batch_record(b, task, &rec))
            snprintf(x->text, sizeof x->text, "worker %s (%s) rendered it at attempt %u, in %.1f s",
                     batch_name_text(b, rec.worker), batch_name_text(b, rec.backend), rec.attempt,
                     (double)rec.render_ms / 1000);
        break;
    case TASK_FAILED:
        r->task_state = "failed";
        if ((f = batch_failure(b, task)))
            snprintf(x->text, sizeof x->text, "%s; kiln retry queues it again",
                     f->reason[0] ? f->reason : kn_err_words(f->code));
        break;
    case TASK_CANCELLED:
        r->task_state = "cancelled";
        snprintf(x->text, sizeof x->text, "with its batch; kiln retry queues it again");
        break;
    }
}

/* Lists a task's attempts. False: there is no room for them. */
static bool list_attempts(struct explanation *x, uint32_t task, const char *text) {
    struct history *h = &x->histories[x->history_count];
    struct kn_explain_reply *r = &x->reply;
    if (history_read(text, h) != 0) {
        history_fini(h);
        return true; /* not a story that this program knows: the count of charges is all there is */
    }
    if (r->count + h->count > KN_ATTEMPTS_PER_REPLY_MAX) {
        history_fini(h);
        return false;
    }
    x->history_count++;
    for (size_t i = 0; i < h->count; i++) {
        r->v[r->count] = h->v[i];
        r->v[r->count++].task = task;
    }
    return true;
}

int explain(struct server *s, const struct kn_explain_query *q, struct explanation *x, struct kn_err *err) {
    struct farm_batch_view v;
    struct farm_task_view tv;
    struct kn_explain_reply *r = &x->reply;
    memset(x, 0, sizeof *x);
    const struct kept_batch *b = batches_find(&s->batches, q->batch);
    if (!b || farm_batch_view(s->farm, q->batch, kn_clock_ms(), &v) != 0)
        return kn_err_set(err, KN_ENOENT, "no such batch");
    r->v = calloc(KN_ATTEMPTS_PER_REPLY_MAX, sizeof *r->v);
    x->histories = calloc(KN_ATTEMPTS_PER_REPLY_MAX, sizeof *x->histories);
    if (!r->v || !x->histories) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    loadings_of(s, &x->loadings);
    status_of(s, b, &v, &x->loadings, false, &x->status);
    r->status = x->status.s;
    r->task_state = "";
    r->text = x->text;
    if (q->has_task) {
        if (farm_task_view(s->farm, q->batch, q->task, &tv) != 0)
            return kn_err_set(err, KN_ENOENT, "its images have the numbers 0 to %u", b->tasks - 1);
        explain_task(s, x, b, q->task, &tv);
        r->charges = tv.charges;
        r->tried = tv.attempts;
        const char *text = batch_history(b, q->task);
        (void)list_attempts(x, q->task, text); /* one task's attempts always have room */
        if (x->history_count > 0 && x->histories[0].total > x->histories[0].count)
            r->left_out = x->histories[0].total - (uint32_t)x->histories[0].count;
        return 0;
    }
    size_t pos = 0;
    uint32_t task;
    for (const char *text; (text = batch_next_history(b, &pos, &task));) {
        r->tried++;
        if (!list_attempts(x, task, text)) r->left_out++;
    }
    return 0;
}

void explain_fini(struct explanation *x) {
    for (size_t i = 0; i < x->history_count; i++) history_fini(&x->histories[i]);
    free(x->histories);
    free(x->reply.v);
    *x = (struct explanation){0};
}
