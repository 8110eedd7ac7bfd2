/* The output folder: batch.json, images/NNNNNN.png, manifest.jsonl, index.html. All derived from what was
 * committed; any of it but the pictures can be made again.
 *
 * An image is in the manifest as soon as it has ended. manifest.jsonl and the gallery's data are replaced
 * whole, so that a reader never sees half a file, and not for every image: folder_flush() does it when enough
 * time has passed for its cost. A run into a folder that has pictures keeps those whose key is asked for and
 * whose bytes are intact, wherever their number was; a folder that holds anything else is refused (earlier.h).
 *
 * DIR/.lock keeps a second run out. */
#ifndef KILN_CLI_FOLDER_FOLDER_H
#define KILN_CLI_FOLDER_FOLDER_H

#include <json-c/json.h>

#include "cli/folder/images.h"
#include "cli/talk/client.h"

/* Makes the folder and takes its lock; nothing else is changed in it. KN_ESTATE: another kiln is at work in it. */
KN_MUST_USE int folder_open(const char *dir, struct folder *out, struct kn_err *err);
void folder_close(struct folder *o);

/* Takes over what may stay of an earlier batch (earlier.h). KN_EEXIST: the folder holds something else. */
KN_MUST_USE int folder_begin(struct folder *o, const struct folder_ask *ask, struct kn_err *err);

/* Opens and begins: DIR, or else (NULL) the first of kiln-out, kiln-out-2, … that is free or holds this batch.
 * In any case folder_close() is the caller's. */
KN_MUST_USE int folder_choose(const char *dir, const struct folder_ask *ask, struct folder *o,
                              struct kn_err *err);
#define FOLDER_DEFAULTS_MAX 1000
#define FOLDER_DEFAULT_MAX 32
void folder_default(int n, char out[FOLDER_DEFAULT_MAX]); /* the n-th of them, from 1 */
/* Writes batch.json. */
KN_MUST_USE int folder_describe(struct folder *o, struct kn_err *err);

/* Results of the farm: index[i] is the image that v[i] speaks of. The pictures are put in their places (place.h) or fetched. An object
 * that the farm has lost leaves its image unended, and *lost counts it. */
KN_MUST_USE int folder_take(struct folder *o, struct client *c, const struct kn_result *v,
                            const uint32_t *index, size_t count, size_t *lost, struct kn_err *err);
/* An image's end as in a result of its own. */
KN_MUST_USE int folder_note(struct folder *o, uint32_t index, const struct kn_result *r);

/* Replaces manifest and gallery data; `last`: for good, durably, else only when it is due. */
KN_MUST_USE int folder_flush(struct folder *o, bool last, struct kn_err *err);

#endif
