/* The output folder: batch.json, images/NNNNNN.png, manifest.jsonl, index.html. All derived from what was
 * committed; any of it but the pictures can be made again.
 *
 * An image is in the manifest as soon as it has ended. manifest.jsonl and the gallery's data are replaced
 * whole, so that a reader never sees half a file, and not for every image: folder_flush() does it when enough
 * time has passed for its cost. A run into a folder that has pictures keeps those whose key is asked for and
 * whose bytes are intact, wherever their number was.
 *
 * DIR/.lock keeps a second run out. Picture files of an older run that are not asked for any more are removed
 * if its manifest lists them; nothing else in the folder is touched. */
#ifndef KILN_CLI_FOLDER_FOLDER_H
#define KILN_CLI_FOLDER_FOLDER_H

#include <json-c/json.h>

#include "cli/folder/images.h"
#include "cli/talk/client.h"

/* Makes the folder and takes its lock. KN_ESTATE: another kiln is at work in it. */
KN_MUST_USE int folder_open(const char *dir, struct folder *out, struct kn_err *err);
void folder_close(struct folder *o);
/* DIR/batch.json of the last run, parsed (the caller puts it back), or NULL. */
json_object *folder_old_batch(const struct folder *o);
/* Tells the folder which images are asked for now. Reads the old manifest and keeps the pictures that are
 * wanted and intact; with pin_backend (NULL: any) only those of that class. */
KN_MUST_USE int folder_begin(struct folder *o, const struct kn_task *tasks, const kn_digest *keys,
                             size_t count, const struct kn_model_info *models, const char *pin_backend,
                             struct kn_err *err);
/* Writes batch.json. */
KN_MUST_USE int folder_describe(struct folder *o, struct kn_err *err);

/* Results of the farm: index[i] is the image that v[i] speaks of. Links or fetches the pictures. An object
 * that the farm has lost leaves its image unended, and *lost counts it. */
KN_MUST_USE int folder_take(struct folder *o, struct client *c, const struct kn_result *v,
                            const uint32_t *index, size_t count, size_t *lost, struct kn_err *err);
/* An image's end as in a result of its own. */
KN_MUST_USE int folder_note(struct folder *o, uint32_t index, const struct kn_result *r);

/* Replaces manifest and gallery data; `last`: for good, durably, else only when it is due. */
KN_MUST_USE int folder_flush(struct folder *o, bool last, struct kn_err *err);

#endif
