/* From a command line to what a farm is asked: prompts read, settings applied, models found, images counted
 * out, seeds given, keys computed; then the batch in chunks and its seal.
 *
 * Every mistake is found before anything is started, and its message names file, line and field. */
#ifndef KILN_CLI_TALK_SUBMISSION_H
#define KILN_CLI_TALK_SUBMISSION_H

#include "cli/cli.h"
#include "cli/talk/client.h"
#include "cli/talk/model.h"

struct submission {
    struct kn_tasks tasks;
    struct kn_model_info models[KN_MODELS_PER_BATCH_MAX];
    char *paths[KN_MODELS_PER_BATCH_MAX]; /* their folders on this machine; NULL: the farm has them */
    size_t model_count;
    kn_digest *keys; /* a task's each, once submission_keys() was called; else NULL */
    uint64_t seed;   /* of what sets none itself */
    bool seed_drawn;
    char name[KN_NAME_MAX + 1];
    /* the farm's default model where a prompt named none, and that is not the one that ships; else "" */
    char default_model[KN_NAME_MAX + 1];
    char *request; /* JSON: what was asked */
    /* Two digests by which a command is known again, and gets again the seed that was drawn for it: over the
     * inputs' names and the prompts of -p, so that a file may grow; and over what was read, so that a file may
     * be named otherwise. */
    char source[KN_SHA256_HEX], contents[KN_SHA256_HEX];
    /* which file a task came from: inputs[k] gave those from first[k] on, before they were counted out */
    const char **inputs;
    size_t *first, input_count;
};

/* Reads the inputs and applies the options: all that can be done without knowing the models. */
KN_MUST_USE int submission_read(const struct cli_options *o, struct submission *out, struct kn_err *err);
/* Finds each task's model: on the farm (`farm` not NULL), else as a folder or a folder's name below --models.
 * Then resolves and counts out images. `seed` is for what sets none itself. */
KN_MUST_USE int submission_resolve(struct submission *sub, const struct cli_options *o,
                                   const struct models *farm, uint64_t seed, bool seed_drawn,
                                   struct kn_err *err);
/* Computes the tasks' keys: for a command that looks for their pictures. */
KN_MUST_USE int submission_keys(struct submission *sub, struct kn_err *err);
void submission_fini(struct submission *sub);
/* 32 random bits: as large as the seeds that people pass on to each other. */
uint64_t draw_seed(void);

/* Hands in the tasks with numbers pick[0…count) (NULL: all) as the batch `id`. Returns when they are durable.
 */
KN_MUST_USE int submission_send(struct client *c, const struct submission *sub, const uint32_t *pick,
                                size_t count, const kn_id id, const struct cli_options *o,
                                struct kn_err *err);

#endif
