/* Batches and workers as the farm tells of them: found by a shortened id, followed as their images end, their
 * tasks read back. Status, wait, fetch, render and top go through here. */
#ifndef KILN_CLI_TALK_BATCH_H
#define KILN_CLI_TALK_BATCH_H

#include "base/prompts.h"
#include "cli/cli.h"
#include "cli/talk/client.h"

/* Connects to the farm that --farm means; KN_ENOENT or KN_ETIMEOUT with words when none answers. */
KN_MUST_USE int farm_connect(const struct cli_options *o, struct client **out, struct kn_err *err);
/* The same for a command that asks for something: with --timeout no answer is awaited for longer (KN_EUNSURE). */
KN_MUST_USE int farm_steer(const struct cli_options *o, struct client **out, struct kn_err *err);

/* All batches (id NULL), newest last and without their requests, or exactly one; *reply (KN_MSG_BATCH_LIST)
 * is the caller's to destroy. KN_ENOENT: there is none with that id. */
KN_MUST_USE int batch_query(struct client *c, const uint8_t *id, struct kn_msg **reply, struct kn_err *err);
/* The id that `text` is or begins. KN_ENOENT: none has it; KN_EINVAL: several have, or it is no id at all. */
KN_MUST_USE int batch_find(struct client *c, const char *text, kn_id out, struct kn_err *err);
KN_MUST_USE int batch_command(struct client *c, const kn_id id, enum kn_batch_verb verb, struct kn_err *err);
/* The farm forgets the batch. `now`: and deletes its pictures at once. */
KN_MUST_USE int batch_remove(struct client *c, const kn_id id, bool now, struct kn_err *err);
/* Its state, worker's state or phase in a word; "state 9" for one that a newer farm has and this program does not
 * know. */
const char *batch_state_text(const struct kn_batch_status *s, char out[32]);
const char *worker_state_text(const struct kn_worker_status *w, char out[32]);
/* "no_worker", …; NULL while something runs. */
const char *batch_wait_text(const struct kn_batch_status *s, char out[32]);
/* True when all its images have ended. */
bool batch_is_over(const struct kn_batch_status *s);
/* True when it is not to be waited for: all its images have ended, or every worker that could render the rest is held
 * and likely to stay so. */
bool batch_is_settled(const struct kn_batch_status *s);

/* Asks for the results that came since the last call. The reply (KN_MSG_RESULTS_REPLY) is the caller's to
 * destroy. */
struct batch_cursor {
    kn_id id;
    uint64_t epoch;
    uint32_t cursor;
};
KN_MUST_USE int batch_results(struct client *c, struct batch_cursor *cur, struct kn_msg **reply,
                              struct kn_err *err);

/* A batch's tasks as they were submitted. */
struct batch_tasks {
    struct kn_tasks list;
    kn_digest *keys;
    struct kn_model_info *models;
    size_t model_count;
};
KN_MUST_USE int batch_tasks(struct client *c, const kn_id id, struct batch_tasks *out, struct kn_err *err);
void batch_tasks_fini(struct batch_tasks *t);

/* Tells the farm that a picture of its is bad or lost: it looks for itself, and renders the image again. An older farm does not
 * know the message, which is no error: there, a retry has to be asked for. */
KN_MUST_USE int batch_report_bad(struct client *c, const kn_id id, uint32_t task, const kn_digest sha256,
                                 struct kn_err *err);

/* True when it gets no work since it is not believed to be well; w->hold_reason says why. */
bool worker_is_held(const struct kn_worker_status *w);
/* The readings of its device ("64 °C 350 W 12.5/79.6 GiB"), as far as it is known; "" when nothing is, or
 * when it is lost. */
const char *worker_readings(const struct kn_worker_status *w, char out[64]);

#endif
