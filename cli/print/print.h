/* The results of commands, on standard output, in two forms: for people (text.c) and as JSON (json.c). A
 * command says what there is to tell and knows neither form; whoever adds a command adds one function to
 * each.
 *
 * Standard output carries results alone. How things go, and what went wrong, is said on standard error, in
 * both forms alike. */
#ifndef KILN_CLI_PRINT_PRINT_H
#define KILN_CLI_PRINT_PRINT_H

#include <sys/types.h>

#include "base/token.h"
#include "cli/cli.h"
#include "cli/folder/folder.h"
#include "cli/folder/verify.h"
#include "proto/codec.h"

struct print_up { /* a farm that has come up */
    const char *endpoint, *dir;
    pid_t pid; /* of its supervisor */
    int workers;
    const char *ready_file; /* names its other listeners, a line each; NULL: none were asked for */
};

struct print_render {
    const char *state; /* "done", "failed", "interrupted", "broken" */
    const struct folder *folder;
    size_t rendered; /* by this run */
    double seconds, images_per_s;
    uint64_t seed;
    bool seed_drawn;
};

struct print {
    /* `one`: a single batch was asked for by its id. */
    void (*batches)(const struct kn_batch_status *v, size_t count, bool one);
    void (*waited)(const struct kn_batch_status *v, size_t count, bool one); /* at the end of a wait */
    void (*workers)(const struct kn_worker_list *l);
    void (*snapshot)(const char *farm, struct kn_batch_list *b, struct kn_worker_list *w); /* sorts them */
    /* kiln explain: of a batch (task -1) or of a task of it; attempts in the order to show them. */
    void (*explained)(const struct kn_explain_reply *r, int64_t task);
    void (*token)(const struct kn_token *t,
                  const struct kn_token_new *what); /* the only time that it is seen */
    void (*tokens)(const struct kn_token_list *l);
    void (*keys)(const struct kn_key_list *l);
    void (*up)(const struct print_up *u);
    void (*rendered)(const struct print_render *r);
    void (*fetched)(const struct folder *f);
    void (*audited)(const struct verify_report *r);
};

extern const struct print print_text, print_json;

/* The form that --json chooses. */
static inline const struct print *print_for(const struct cli_options *o) {
    return o->json ? &print_json : &print_text;
}

#endif
