/* See repair.h.
 *
 * The memory is whole: it has the requests, the chunks, the records and failures, and knows how often a task was
 * charged. Only a batch that is set aside was never read, so that it cannot be written again. */
#include "coordinator/repair.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/keys.h"
#include "coordinator/workers.h"

#define RECORDS_A_WRITE 16384

/* The request and the chunks, as a client would submit them. */
static int tell_submission(struct server *s, const struct kept_batch *b, int32_t priority) {
    struct kn_buf packed;
    struct kn_msg bare = *b->msg;
    kn_buf_init(&packed, KN_FRAME_BYTES_MAX + 1);
    bare.request = 0;
    int rc = kn_msg_encode(&bare, &packed, NULL);
    struct store_batch sb = {.begin = packed.data,
                             .begin_len = packed.len,
                             .tasks = b->tasks,
                             .chunks = b->chunk_count,
                             .priority = priority,
                             .created_wall_ms = b->created_wall_ms};
    memcpy(sb.id, b->id, sizeof sb.id);
    if (rc == 0) rc = store_begin(s->store, &sb, NULL, NULL);
    kn_buf_fini(&packed);
    for (uint32_t i = 0; rc == 0 && i < b->chunk_count; i++)
        if (b->chunks[i].data)
            rc = store_chunk(s->store, b->id, i, b->chunks[i].data, b->chunks[i].len, NULL, NULL);
    return rc;
}

static int tell_ends(struct server *s, const struct kept_batch *b) {
    int rc = 0;
    for (uint32_t from = 0; rc == 0 && b->records && from < b->tasks; from += RECORDS_A_WRITE) {
        uint32_t n = b->tasks - from < RECORDS_A_WRITE ? b->tasks - from : RECORDS_A_WRITE;
        rc = store_records(s->store, b->id, from, b->records[from], n);
    }
    for (uint32_t i = 0; rc == 0 && b->failures && i < b->tasks; i++) {
        const struct batch_failure *f = b->failures[i];
        if (!f) continue;
        struct store_failure x = {.task = i,
                                  .code = f->code,
                                  .attempt = f->attempt,
                                  .order = f->order,
                                  .worker = f->worker,
                                  .reason = f->reason};
        rc = store_fail(s->store, b->id, &x, NULL, NULL);
    }
    return rc;
}

static int tell_charges(struct server *s, const struct kept_batch *b) {
    size_t pos = 0;
    uint32_t task;
    const char *story;
    int rc = 0;
    while (rc == 0 && (story = batch_next_history(b, &pos, &task))) {
        struct farm_task_view v;
        if (farm_task_view(s->farm, b->id, task, &v) == 0)
            rc = store_charge(s->store, b->id, task, v.charges, story);
    }
    return rc;
}

static int tell_batch(struct server *s, const struct kept_batch *b, int32_t priority) {
    int rc = tell_submission(s, b, priority);
    if (rc == 0) rc = store_seal(s->store, b->id, b->chunk_count, NULL, NULL);
    for (uint32_t i = 1; rc == 0 && i < b->name_count; i++)
        if (b->names[i]) rc = store_name(s->store, b->id, i, b->names[i]);
    if (rc == 0) rc = tell_ends(s, b);
    if (rc == 0) rc = tell_charges(s, b);
    if (rc == 0)
        rc = store_state(s->store, b->id, b->state, priority, b->finished_wall_ms, false, NULL, NULL);
    return rc;
}

int server_repair(void *ctx) {
    struct server *s = ctx;
    size_t pos = 0, staged = 0;
    struct kept_batch *b;
    struct farm_batch_view v;
    int rc = 0;
    if (s->closing) return KN_ECANCELED;
    for (size_t i = 0; rc == 0 && i < farm_batch_count(s->farm); i++) /* in the order of their acceptance */
        if (farm_batch_at(s->farm, i, kn_clock_ms(), &v) == 0 && (b = batches_find(&s->batches, v.id)))
            rc = tell_batch(s, b, v.priority);
    while (rc == 0 && (b = kn_map_next(s->batches.by_id, &pos))) {
        if (b->phase != BATCH_STAGED && b->phase != BATCH_SEALING) continue;
        rc = tell_submission(s, b, b->priority);
        staged++;
    }
    if (rc == 0) rc = workers_store_models(s);
    if (rc == 0) rc = keys_store(s);
    if (rc != 0) return rc;
    s->repaired_wall_ms = kn_wall_ms();
    s->repairs++;
    kn_error(
        "store_repaired batches=%zu staged=%zu: it had gone back or was not to be trusted, and was told "
        "everything again",
        farm_batch_count(s->farm), staged);
    return 0;
}

void repair_note(const struct server *s, char out[KN_WAIT_TEXT_MAX]) {
    out[0] = '\0';
    if (s->repairs == 0) return;
    snprintf(
        out, KN_WAIT_TEXT_MAX,
        "it had gone back, or had settings with which it could lose what it was told, %llu time%s; the last time "
        "%llu s ago: the coordinator told it everything again. Look at who did that",
        (unsigned long long)s->repairs, s->repairs == 1 ? "" : "s",
        (unsigned long long)((kn_wall_ms() - s->repaired_wall_ms) / 1000));
}
