/* kiln verify: the audit of output folders, and of batches on the farm. */
#include "cli/commands/commands.h"
#include "cli/folder/verify.h"
#include "cli/folder/verify_farm.h"
#include "cli/print/print.h"
#include "cli/talk/batch.h"

/* Prints the report, or the error; the exit status of it alone. */
static int tell(const struct cli_options *o, int rc, struct verify_report *r, const struct kn_err *err) {
    int one;
    if (rc) {
        one = cli_fail(err);
    } else {
        if (r->busy)
            cli_say(o->farm ? "%s: not all of it has ended"
                            : "%s: a run is at work in it: what has not ended yet counts as a fault",
                    r->dir);
        print_for(o)->audited(r);
        one = r->fault_count ? CLI_FAILED : CLI_DONE;
    }
    verify_report_fini(r);
    return one;
}

static void worse(int *status, int one) {
    if (one == CLI_BAD_INPUT || *status == CLI_DONE) *status = one;
}

static int verify_folders(const struct cli_options *o) {
    int status = CLI_DONE;
    for (int i = 0; i < o->arg_count; i++) {
        struct verify_report r;
        struct kn_err err = {0};
        int rc = verify_folder(o->args[i], 0, &r, &err), one = tell(o, rc, &r, &err);
        if (rc == KN_ECANCELED) return one;
        worse(&status, one);
    }
    return status;
}

static int verify_batch(const struct cli_options *o, struct client *c, const kn_id id, int *status) {
    struct verify_report r;
    struct kn_err err = {0};
    int rc = verify_farm(c, id, &r, &err);
    worse(status, tell(o, rc, &r, &err));
    return rc;
}

/* The batches with these ids, or all. */
static int verify_batches(const struct cli_options *o) {
    struct kn_err err = {0};
    struct client *c = NULL;
    struct kn_msg *all = NULL;
    int status = CLI_DONE, rc = farm_connect(o, &c, &err);
    if (rc == KN_OK && o->arg_count == 0) rc = batch_query(c, NULL, &all, &err);
    if (rc) {
        client_close(c);
        return cli_fail(&err);
    }
    for (size_t i = 0; all && rc != KN_ECANCELED && i < all->u.batch_list.count; i++)
        rc = verify_batch(o, c, all->u.batch_list.v[i].batch, &status);
    for (int i = 0; rc != KN_ECANCELED && i < o->arg_count; i++) {
        kn_id id;
        rc = batch_find(c, o->args[i], id, &err);
        if (rc)
            worse(&status, cli_fail(&err));
        else
            rc = verify_batch(o, c, id, &status);
    }
    kn_msg_destroy(all);
    client_close(c);
    return status;
}

static int run(const struct cli_options *o) {
    struct kn_err err = {0};
    cli_catch_signals();
    if (o->farm) return verify_batches(o);
    if (o->arg_count == 0) {
        kn_err_set(&err, KN_EINVAL,
                   "verify: a folder is missing (or --farm DIR, for the pictures that a farm has)");
        return cli_fail(&err);
    }
    return verify_folders(o);
}

const struct cli_command cmd_verify = {
    .name = "verify",
    .usage = "DIR… | --farm DIR|ENDPOINT [ID…]",
    .words = "check a folder's or a farm's pictures",
    .more =
        "Checks from the files alone that a folder holds what was asked for: a line an image, a "
        "file a line, digests, and that every picture decodes to the pixels that were rendered. With "
        "--farm, the same of the pictures that a farm has of these batches, or of all: a bad one is "
        "reported, and the farm renders it again.",
    .examples =
        "  kiln verify pictures\n"
        "  kiln verify --farm ~/.kiln 3f2a\n",
    .groups = CLI_G_JSON | CLI_G_FARM,
    .args_max = -1,
    .run = run,
};
