/* The names of an output folder's pictures, where a person wants others than their numbers.
 *
 * They come from a pattern (--name-pattern), such as "{index:06}-{seed}-{prompt:40}", else from a column or key
 * `file` of the input. A word in {} is a field of the manifest that is known before an image is rendered,
 * or a column of the input that kiln does not know, as {extra.NAME} or {NAME}. Behind a colon, numbers have the
 * least number of digits, texts the most characters. {{ and }} are braces.
 *
 * A name is safe on every file system: in NFC, without separators, control characters and what Windows forbids,
 * without blanks and dots at its end, none of Windows' reserved names, 255 bytes at most. Two images never get
 * the same name, nor two that differ in case alone. */
#ifndef KILN_CLI_FOLDER_NAMES_H
#define KILN_CLI_FOLDER_NAMES_H

#include <stddef.h>

#include "base/err.h"
#include "base/prompts.h"

/* "images/NAME.png" for each of the tasks, which are resolved; *out is NULL when there is neither a pattern nor
 * a column. The caller frees with names_free(). KN_EINVAL: the pattern is wrong, or two would have one name:
 * err says which. */
KN_MUST_USE int names_make(const char *pattern, const struct kn_tasks *tasks, const kn_digest *keys,
                           const struct kn_model_info *models, size_t count, char ***out, struct kn_err *err);
void names_free(char **names, size_t count);
/* A name as file systems that ignore case compare it; the caller frees. NULL: no memory. */
char *names_fold(const char *name);

#endif
