/* The models there are: those that a farm's workers announce, and those that kiln-worker finds in a folder on
 * this machine. The cli never links the engine. */
#ifndef KILN_CLI_TALK_MODEL_H
#define KILN_CLI_TALK_MODEL_H

#include "base/fs.h"
#include "cli/cli.h"
#include "cli/talk/client.h"

struct models {
    struct kn_model_info *v; /* owns; of workers that are there */
    size_t count;
    struct kn_model_info *known; /* owns; that the farm had once: a batch of one waits for a worker */
    size_t known_count;
    /* the name of the one that is meant where none is named; "": the one that ships */
    char default_model[KN_NAME_MAX + 1];
};
void models_fini(struct models *m);
/* Asks again for wait_ms while there is none: workers may be on their way. */
KN_MUST_USE int models_of_farm(struct client *c, int wait_ms, struct models *out, struct kn_err *err);
/* By name, among those of workers, else among those that the farm knows; NULL: none. */
const struct kn_model_info *models_find(const struct models *m, const char *name);
const struct kn_model_info *models_find_hash(const struct models *m, const uint8_t sha256[KN_SHA256_BYTES]);
/* "a, b and 3 more", for messages. */
void models_list(const struct models *m, char *out, size_t out_max);

/* Runs kiln-worker --describe-model DIR ("sim:…": the simulated engine's model). Reads every file once. */
KN_MUST_USE int model_describe(const char *dir, struct kn_model_info *out, struct kn_err *err);
/* The line that it prints. */
KN_MUST_USE int model_parse(const char *text, size_t len, struct kn_model_info *out, struct kn_err *err);
/* The model folders below o's --models (or among them) that are called `name` (NULL: any): how many, the
 * first one's path, and their names for messages. */
size_t models_local(const struct cli_options *o, const char *name, char path[KN_PATH_MAX], char *list,
                    size_t list_max);
/* KN_EINVAL with words: it is not a folder, or not there. */
KN_MUST_USE int model_check_folder(const char *path, struct kn_err *err);
/* True when `name` is a path rather than a model's name. */
bool model_is_folder(const char *name);
/* True when --engine asks for the simulated engine, which has a model of its own. */
bool model_is_simulated(const struct cli_options *o);

/* The models' folders for private workers: --models and --model when it is a folder, or the one that ships.
 * Absolute paths in static memory. */
struct model_folders {
    const char *models[CLI_MODELS_MAX];
    size_t count;
    const char *model; /* NULL: none */
};
KN_MUST_USE int model_folders_choose(const struct cli_options *o, struct model_folders *out,
                                     struct kn_err *err);
/* Describes every model in them. One that cannot be described is left out, as the workers do; --model must be. */
KN_MUST_USE int model_folders_describe(const struct model_folders *f, struct models *out, struct kn_err *err);
/* The name of the model that a farm of these options declares as its default: that of --model, or the simulated
 * engine's; "" when nothing was asked for, which means the one that ships. */
KN_MUST_USE int model_default(const struct cli_options *o, char out[KN_NAME_MAX + 1], struct kn_err *err);

#endif
