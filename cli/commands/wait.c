/* kiln wait: until batches have ended. */
#include <stdlib.h>

#include "base/clock.h"
#include "cli/commands/commands.h"
#include "cli/commands/on_done.h"
#include "cli/print/print.h"
#include "cli/print/progress.h"
#include "cli/talk/statuses.h"

#define WAIT_POLL_MS 200

static int on_idle(void *ctx, int silent_ms, struct kn_err *err) {
    (void)err;
    progress_silent(ctx, silent_ms);
    return KN_OK;
}

static void add_up(const struct statuses *s, struct progress_state *p) {
    *p = (struct progress_state){.eta_ms = -1, .loading = "", .wait = ""};
    double progress = 0;
    bool unknown = false, moves = false;
    for (size_t i = 0; i < s->count; i++) {
        const struct kn_batch_status *b = &s->v[i];
        p->total += b->total;
        p->done += b->done;
        p->failed += b->failed;
        p->cancelled += b->cancelled;
        p->running += b->running;
        p->images_per_s += (double)b->images_per_s;
        p->steps_per_s += (double)b->steps_per_s;
        progress += (double)b->progress * b->total;
        if (b->loading[0]) p->loading = b->loading, p->loading_bytes = b->loading_bytes;
        p->paused = p->paused || (b->state == KN_BATCH_PAUSED && !batch_is_over(b));
        if (batch_is_over(b)) continue;
        if (b->wait)
            p->wait = b->wait_text;
        else
            moves = true;
        unknown = unknown || b->eta_ms < 0;
        if (b->eta_ms > p->eta_ms) p->eta_ms = b->eta_ms;
    }
    if (unknown) p->eta_ms = -1; /* the wait ends when the last of them does */
    if (moves) p->wait = "";
    if (p->total) p->progress = progress / (double)p->total;
}

static int run(const struct cli_options *o) {
    struct kn_err err = {0};
    struct client *c = NULL;
    struct statuses s = {0};
    struct progress progress;
    struct progress_state now = {0};
    kn_id *ids = NULL;
    cli_catch_signals();
    uint64_t end = o->timeout_s ? kn_clock_ms() + (uint64_t)o->timeout_s * 1000 : UINT64_MAX;
    int rc = farm_connect(o, &c, &err);
    if (rc == KN_OK) rc = statuses_find(c, o, &ids, &err);
    progress_begin(&progress, o->quiet);
    if (c) client_on_idle(c, on_idle, &progress);
    bool over = false, late = false;
    while (rc == KN_OK && !over && !late) {
        statuses_fini(&s);
        rc = statuses_ask(c, (const kn_id *)ids, (size_t)o->arg_count, &s, &err);
        if (rc) break;
        add_up(&s, &now);
        progress_update(&progress, &now);
        over = true;
        for (size_t i = 0; i < s.count; i++) over = over && batch_is_settled(&s.v[i]);
        late = !over && kn_clock_ms() >= end;
        if (!over && !late) rc = client_sleep(c, WAIT_POLL_MS, &err);
    }
    progress_end(&progress);
    int status = rc ? cli_fail(&err) : CLI_DONE;
    if (rc == KN_OK) {
        print_for(o)->waited(s.v, s.count, o->arg_count == 1);
        if (late)
            cli_say("%zu of %zu images have ended; not waiting any longer",
                    now.done + now.failed + now.cancelled, now.total);
        else if (now.failed + now.cancelled)
            cli_say("%zu done, %zu failed, %zu cancelled", now.done, now.failed, now.cancelled);
        for (size_t i = 0; i < s.count && !late; i++)
            if (s.v[i].held) cli_say("%s: %s", s.v[i].name, s.v[i].wait_text);
        if (now.done < now.total) status = late ? CLI_ACCEPTED : CLI_FAILED;
        for (size_t i = 0; i < s.count; i++) {
            if (s.v[i].state != KN_BATCH_ASIDE) continue;
            cli_say("%s is set aside, since it cannot be read back: %s", o->args[i], s.v[i].wait_text);
            status = CLI_FAILED;
        }
    }
    for (size_t i = 0; rc == KN_OK && !late && i < s.count; i++) {
        if (!batch_is_over(&s.v[i])) continue;
        const struct kn_batch_status *b = &s.v[i];
        char id[KN_UUID_TEXT];
        kn_uuid_format(b->batch, id);
        on_done_run(o, id, "",
                    b->done == b->total && b->state != KN_BATCH_ASIDE ? "done"
                    : b->cancelled                                    ? "cancelled"
                                                                      : "failed");
    }
    statuses_fini(&s);
    free(ids);
    client_close(c);
    return status;
}

const struct cli_command cmd_wait = {
    .name = "wait",
    .usage = "ID… [options]",
    .words = "wait until batches have ended",
    .more =
        "Waits until every image of the batches is done, failed or cancelled, or until nothing can be expected: "
        "every worker that could render the rest is held. Status 0 when all are done, 2 when not, 4 when --timeout came first: they are accepted and go on.",
    .examples = "  kiln wait 3f2a\n",
    .groups = CLI_G_FARM | CLI_G_TIMEOUT | CLI_G_JSON | CLI_G_QUIET | CLI_G_AT_END,
    .args_min = 1,
    .args_max = -1,
    .run = run,
};
