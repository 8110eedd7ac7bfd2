/* kiln verify: the audit of output folders. */
#include "cli/commands/commands.h"
#include "cli/folder/verify.h"
#include "cli/print/print.h"

static int run(const struct cli_options *o) {
    int status = CLI_DONE;
    cli_catch_signals();
    for (int i = 0; i < o->arg_count; i++) {
        struct verify_report r;
        struct kn_err err = {0};
        int rc = verify_folder(o->args[i], 0, &r, &err), one;
        if (rc) {
            one = cli_fail(&err);
        } else {
            if (r.busy)
                cli_say("%s: a run is at work in it: what has not ended yet counts as a fault", r.dir);
            print_for(o)->audited(&r);
            one = r.fault_count ? CLI_FAILED : CLI_DONE;
        }
        verify_report_fini(&r);
        if (rc == KN_ECANCELED) return one;
        if (one == CLI_BAD_INPUT || status == CLI_DONE) status = one;
    }
    return status;
}

const struct cli_command cmd_verify = {
    .name = "verify",
    .usage = "DIR…",
    .words = "check a folder of pictures",
    .more =
        "Checks from the files alone that a folder holds what was asked for: a line an image, a "
        "file a line, digests, and that every picture decodes to the pixels that were rendered.",
    .examples = "  kiln verify pictures\n",
    .groups = CLI_G_JSON,
    .args_min = 1,
    .args_max = -1,
    .run = run,
};
