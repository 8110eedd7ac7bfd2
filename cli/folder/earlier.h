/* The contents of an output folder before a run: an earlier batch of kiln's, or files that are not kiln's.
 *
 * kiln never removes or replaces a file that it did not make for this batch. A folder is gone on with when it
 * holds nothing else: every image that its manifest lists, by key, is asked for again, possibly with others
 * (then its pictures are kept, whatever their numbers and names are now). Anything else is refused, in words,
 * before a byte has changed; `replace` lets an earlier batch go, but never what is not kiln's.
 *
 * kiln's are: batch.json with kiln's fields; manifest.jsonl with kiln's lines; the gallery's files by how they
 * begin; a picture that the manifest lists, or that carries the `parameters` of an image that is asked for (a
 * run that was killed had not written it down yet). A listed picture that is no longer as it was made is
 * somebody's work: it is put aside into DIR/changed/, and said, before its image is rendered again. */
#ifndef KILN_CLI_FOLDER_EARLIER_H
#define KILN_CLI_FOLDER_EARLIER_H

#include <json-c/json.h>

#include "cli/folder/images.h"

/* DIR/batch.json if kiln wrote it (the caller puts it back), or NULL. */
json_object *earlier_batch(const char *dir);
/* Takes over what may stay into o->entries. KN_EEXIST: the folder holds another batch or foreign files, nothing
 * was changed, and err says what is there and what can be done. */
KN_MUST_USE int earlier_take(struct folder *o, const struct folder_ask *ask, struct kn_err *err);
/* True when a batch.json is of the batch with these keys, in their order. */
bool earlier_has_keys(json_object *batch, const kn_digest *keys, size_t count);

#endif
