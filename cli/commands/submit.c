/* kiln submit: prompts handed in to a farm that is up; the id comes back at once. */
#include <stdio.h>

#include "cli/commands/commands.h"
#include "cli/talk/batch.h"
#include "cli/talk/submission.h"

#define WORKERS_WAIT_MS 10000 /* for the first one to tell of its models */

static int run(const struct cli_options *o) {
    static struct submission sub;
    struct kn_err err = {0};
    struct client *c = NULL;
    struct models farm = {0};
    kn_id id;
    cli_catch_signals();
    bool input = true; /* a mistake is the input's, not the farm's */
    int rc = submission_read(o, &sub, &err);
    if (rc == KN_OK) {
        input = false;
        rc = farm_connect(o, &c, &err);
    }
    if (rc == KN_OK) rc = models_of_farm(c, WORKERS_WAIT_MS, &farm, &err);
    if (rc == KN_OK) {
        uint64_t seed = o->has_seed ? o->settings.seed : draw_seed();
        rc = submission_resolve(&sub, o, &farm, seed, !o->has_seed, &err);
        input = rc != KN_OK;
    }
    if (rc == KN_OK && sub.default_model[0]) cli_say("model: %s (the farm's default)", sub.default_model);
    if (rc == KN_OK) {
        kn_uuid_random(id);
        rc = submission_send(c, &sub, NULL, sub.tasks.count, id, o, &err);
    }
    if (rc == KN_OK) {
        char text[KN_UUID_TEXT];
        kn_uuid_format(id, text);
        printf("%s\n", text);
        fprintf(stderr, "kiln: %zu image%s submitted; kiln wait %.8s, kiln fetch %.8s -o DIR\n",
                sub.tasks.count, sub.tasks.count == 1 ? "" : "s", text, text);
    }
    client_close(c);
    models_fini(&farm);
    submission_fini(&sub);
    if (rc && input) {
        cli_fail(&err);
        return err.code == KN_ECANCELED ? CLI_INTERRUPTED : CLI_BAD_INPUT;
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
    .groups = CLI_G_INPUT | CLI_G_SUBMIT | CLI_G_FARM,
    .args_max = -1,
    .run = run,
};
