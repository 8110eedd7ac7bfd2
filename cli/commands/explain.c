/* kiln explain: why a batch or an image of it stands as it does. */
#include <stdlib.h>
#include <string.h>

#include "base/options.h"
#include "cli/commands/commands.h"
#include "cli/print/print.h"
#include "cli/talk/batch.h"

/* "3f2a/17" -> the id's text and 17; -1: no image is named. */
static int split(const char *text, char id[64], int64_t *task, struct kn_err *err) {
    const char *slash = strchr(text, '/');
    size_t len = slash ? (size_t)(slash - text) : strlen(text);
    uint64_t n;
    *task = -1;
    if (len >= 64)
        return kn_err_set(err, KN_ENOENT, "%.60s: no batch has such an id; kiln status lists them", text);
    memcpy(id, text, len);
    id[len] = '\0';
    if (!slash) return KN_OK;
    if (kn_option_number(slash + 1, 0, KN_TASKS_PER_BATCH_MAX - 1, &n, NULL))
        return kn_err_set(err, KN_EINVAL, "%.60s: behind the / belongs the number of an image", text);
    *task = (int64_t)n;
    return KN_OK;
}

static int by_task_and_time(const void *a, const void *b) {
    const struct kn_attempt *x = a, *y = b;
    if (x->task != y->task) return x->task < y->task ? -1 : 1;
    return x->wall_ms < y->wall_ms ? -1 : x->wall_ms > y->wall_ms;
}

static int run(const struct cli_options *o) {
    struct kn_err err = {0};
    struct client *c = NULL;
    struct kn_msg m = {.type = KN_MSG_EXPLAIN_QUERY}, *r = NULL;
    char id[64];
    int64_t task;
    cli_catch_signals();
    int rc = split(o->args[0], id, &task, &err);
    if (rc == KN_OK) rc = farm_connect(o, &c, &err);
    if (rc == KN_OK) rc = batch_find(c, id, m.u.explain_query.batch, &err);
    if (rc == KN_OK) {
        m.u.explain_query.has_task = task >= 0;
        m.u.explain_query.task = task >= 0 ? (uint32_t)task : 0;
        rc = client_call(c, &m, KN_MSG_EXPLAIN_REPLY, CLIENT_PATIENCE_MS, &r, &err);
        if (rc) kn_err_prefix(&err, "%s", o->args[0]);
    }
    if (rc == KN_OK) {
        struct kn_explain_reply *x = &r->u.explain_reply;
        qsort(x->v, x->count, sizeof *x->v, by_task_and_time);
        print_for(o)->explained(x, task);
    }
    kn_msg_destroy(r);
    client_close(c);
    return rc ? cli_fail(&err) : CLI_DONE;
}

const struct cli_command cmd_explain = {
    .name = "explain",
    .usage = "ID[/NUMBER]",
    .words = "why a batch, or an image of it, stands so",
    .more =
        "Says why a batch is not being rendered and what to do about it, when it will be done, and which of "
        "its images needed more than one attempt. With the number of an image: where it is, and each attempt "
        "at it: on which worker, when, why it failed, and whether that was charged to the image.",
    .examples =
        "  kiln explain 3f2a\n"
        "  kiln explain 3f2a/17 --json\n",
    .groups = CLI_G_FARM | CLI_G_JSON,
    .args_min = 1,
    .args_max = 1,
    .run = run,
};
