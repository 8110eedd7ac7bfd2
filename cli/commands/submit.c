/* kiln submit: prompts handed in to a farm that is up; the id comes back at once. */
#include <stdio.h>

#include "cli/commands/commands.h"
#include "cli/talk/batch.h"
#include "cli/talk/submission.h"

#define WORKERS_WAIT_MS 10000 /* for the first one to tell of its models */

/* True when a model is named that nobody knows yet: a worker that is on its way may announce it. */
static bool needs_worker(const struct submission *sub, const struct cli_options *o,
                         const struct models *farm) {
    if (farm->count > 0 || !(o->settings.set & KN_SET_MODEL)) return false;
    for (size_t i = 0; i < sub->tasks.count; i++) {
        const struct kn_task *t = kn_tasks_at(&sub->tasks, i);
        const char *name = t->set & KN_SET_MODEL ? t->model : o->settings.model;
        if (!model_is_folder(name) && !models_find(farm, name)) return true;
    }
    return false;
}

static int run(const struct cli_options *o) {
    static struct submission sub;
    struct kn_err err = {0};
    struct client *c = NULL;
    struct models farm = {0};
    kn_id id;
    cli_catch_signals();
    bool sent = false;
    bool input = true; /* a mistake is the input's, not the farm's */
    int rc = submission_read(o, &sub, &err);
    if (rc == KN_OK) {
        input = false;
        rc = farm_connect(o, &c, &err);
    }
    /* With a model named, it is known without a worker, or it is not: nobody is waited for. */
    if (rc == KN_OK)
        rc = models_of_farm(c, o->settings.set & KN_SET_MODEL ? 0 : WORKERS_WAIT_MS, &farm, &err);
    if (rc == KN_OK && needs_worker(&sub, o, &farm)) {
        models_fini(&farm);
        rc = models_of_farm(c, WORKERS_WAIT_MS, &farm, &err);
    }
    if (rc == KN_OK) {
        uint64_t seed = o->has_seed ? o->settings.seed : draw_seed();
        rc = submission_resolve(&sub, o, &farm, seed, !o->has_seed, &err);
        input = rc != KN_OK;
    }
    if (rc == KN_OK && sub.default_model[0] && !o->quiet)
        cli_say("model: %s (the farm's default)", sub.default_model);
    if (rc == KN_OK) {
        kn_uuid_random(id);
        sent = true;
        rc = submission_send(c, &sub, NULL, sub.tasks.count, id, o, &err);
    }
    if (rc == KN_OK) {
        char text[KN_UUID_TEXT];
        kn_uuid_format(id, text);
        static char owed[120];
        snprintf(owed, sizeof owed,
                 "the farm has accepted the batch %s; kiln wait and kiln fetch take that id", text);
        cli_owe(owed, CLI_ACCEPTED);
        printf("%s\n", text);
        if (fflush(stdout) == 0 && !o->quiet)
            cli_say("%zu image%s submitted; kiln wait %.8s, kiln fetch %.8s -o DIR", sub.tasks.count,
                    sub.tasks.count == 1 ? "" : "s", text, text);
    } else if (sent) {
        char text[KN_UUID_TEXT];
        kn_uuid_format(id, text);
        if (rc == KN_EUNSURE || rc == KN_ECANCELED)
            cli_say("kiln status %s tells whether the farm has accepted the batch", text);
    }
    client_close(c);
    models_fini(&farm);
    submission_fini(&sub);
    if (rc && input) {
        cli_fail(&err);
        return err.code == KN_ECANCELED ? CLI_INTERRUPTED
               : err.code == KN_EPERM   ? CLI_NOT_ALLOWED
                                        : CLI_BAD_INPUT;
    }
    return rc ? cli_fail(&err) : CLI_DONE;
}

const struct cli_command cmd_submit = {
    .name = "submit",
    .usage = CLI_USAGE_INPUT,
    .words = "hand in prompts, get an id",
    .more =
        "Like render, but returns as soon as the farm has the batch on disk. Prints the id alone on "
        "standard output.",
    .examples = "  id=$(kiln submit prompts.txt) && kiln wait $id && kiln fetch $id -o pictures\n",
    .groups = CLI_G_INPUT | CLI_G_SUBMIT | CLI_G_FARM | CLI_G_QUIET,
    .args_max = -1,
    .run = run,
};
