/* kiln fetch: a batch's pictures into a folder, from a farm near or far. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands/commands.h"
#include "cli/folder/folder.h"
#include "cli/print/print.h"
#include "cli/print/progress.h"
#include "cli/talk/batch.h"

static int on_idle(void *ctx, int silent_ms, struct kn_err *err) {
    (void)err;
    progress_silent(ctx, silent_ms);
    return KN_OK;
}

/* Results until there are no more at the moment. */
static int collect(struct client *c, const kn_id id, struct folder *out, struct progress *progress,
                   size_t *lost, struct kn_err *err) {
    struct batch_cursor cur = {0};
    memcpy(cur.id, id, sizeof(kn_id));
    for (;;) {
        struct kn_msg *m;
        int rc = batch_results(c, &cur, &m, err);
        if (rc) return rc;
        const struct kn_results_reply *reply = &m->u.results_reply;
        size_t count = reply->count;
        uint32_t *index = calloc(count + 1, sizeof *index);
        if (!index) rc = kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
        for (size_t i = 0; rc == KN_OK && i < count; i++) index[i] = reply->v[i].index;
        if (rc == KN_OK) rc = folder_take(out, c, reply->v, index, count, lost, err);
        free(index);
        kn_msg_destroy(m);
        struct progress_state p = {.total = out->count,
                                   .done = out->done,
                                   .failed = out->failed,
                                   .cancelled = out->cancelled,
                                   .eta_ms = -1};
        progress_update(progress, &p);
        if (rc == KN_OK) rc = folder_flush(out, false, err);
        if (rc || count == 0) return rc;
    }
}

static void tell_fetched(const struct cli_options *o, const struct folder *out, size_t lost) {
    size_t ended = out->done + out->failed + out->cancelled;
    cli_say("%zu of %zu images are in %s%s", out->done, out->count, out->dir,
            ended + lost < out->count ? "; the batch is still being rendered" : "");
    if (out->failed) cli_say("%zu failed; manifest.jsonl says why", out->failed);
    if (lost)
        cli_say("%zu picture%s lost or damaged on the farm; kiln retry %.8s renders %s again", lost,
                lost == 1 ? " is" : "s are", out->id, lost == 1 ? "it" : "them");
    print_for(o)->fetched(out);
}

static int run(const struct cli_options *o) {
    static struct folder out;
    struct kn_err err = {0};
    struct client *c = NULL;
    struct batch_tasks tasks = {0};
    struct kn_msg *about = NULL;
    struct progress progress;
    kn_id id;
    size_t lost = 0;
    bool opened = false, begun = false;
    cli_catch_signals();
    int rc = farm_connect(o, &c, &err);
    if (rc == KN_OK) rc = batch_find(c, o->args[0], id, &err);
    if (rc == KN_OK) rc = batch_query(c, id, &about, &err);
    if (rc == KN_OK) rc = batch_tasks(c, id, &tasks, &err);
    if (rc == KN_OK) {
        opened = true;
        rc = folder_choose(o->out,
                           &(struct folder_ask){.tasks = &tasks.list,
                                                .keys = (const kn_digest *)tasks.keys,
                                                .count = tasks.list.count,
                                                .models = tasks.models,
                                                .name_pattern = o->name_pattern,
                                                .replace = o->replace},
                           &out, &err);
        begun = rc == KN_OK;
        if (rc && rc != KN_ECANCELED)
            err.code = rc = KN_EINVAL; /* a folder that cannot be used is the command line's mistake */
    }
    if (rc == KN_OK) {
        const struct kn_batch_status *s = &about->u.batch_list.v[0];
        kn_uuid_format(id, out.id);
        snprintf(out.name, sizeof out.name, "%s", s->name);
        out.created_wall_ms = s->created_wall_ms;
        out.request = s->request;
        out.placing = o->link ? FOLDER_LINK : FOLDER_COPY;
    }
    progress_begin(&progress, o->quiet);
    if (c) client_on_idle(c, on_idle, &progress);
    if (rc == KN_OK) rc = folder_describe(&out, &err);
    if (rc == KN_OK) rc = collect(c, id, &out, &progress, &lost, &err);
    progress_end(&progress);
    if (begun) {
        struct kn_err last = {0};
        out.finished = out.done + out.failed + out.cancelled == out.count;
        int rc2 = folder_flush(&out, true, &last);
        if (rc2 && rc == KN_OK) {
            rc = rc2;
            err = last;
        }
    }
    size_t open = out.count - out.done - out.failed - out.cancelled;
    if (lost > open) lost = open; /* some were rendered again, and came, meanwhile */
    int status = rc ? cli_fail(&err) : CLI_DONE;
    if (rc == KN_OK) {
        tell_fetched(o, &out, lost);
        if (out.failed || lost) status = CLI_FAILED;
    }
    if (opened) folder_close(&out);
    kn_msg_destroy(about);
    batch_tasks_fini(&tasks);
    client_close(c);
    return status;
}

const struct cli_command cmd_fetch = {
    .name = "fetch",
    .usage = "ID [-o DIR]",
    .words = "get a batch's pictures",
    .more =
        "Collects what is there of a batch into a folder, at any time and from any machine that "
        "reaches the farm. What the folder has already is not fetched again; a folder that holds "
        "anything else is refused.",
    .examples = "  kiln fetch 3f2a -o pictures\n",
    .groups = CLI_G_FARM | CLI_G_OUT | CLI_G_JSON | CLI_G_QUIET,
    .args_min = 1,
    .args_max = 1,
    .run = run,
};
