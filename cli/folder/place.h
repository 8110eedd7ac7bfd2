/* Puts pictures into their places in an output folder. One that is there is whole: it is written under a name
 * of its own, then renamed. A file that lies in its place already and is not this folder's is never replaced. */
#ifndef KILN_CLI_FOLDER_PLACE_H
#define KILN_CLI_FOLDER_PLACE_H

#include "cli/folder/images.h"

/* Names for a moment, with an image's number behind them: of a picture that is being written, and of one that
 * is kept and gets another name. */
#define PLACE_FRESH ".new-"
#define PLACE_KEPT ".kept-"

#define PLACE_PATH_MAX (KN_PATH_MAX + FOLDER_FILE_MAX)

/* The path of image i's picture (prefix NULL), or of its name for a moment. */
void place_path(const struct folder *o, const char *prefix, size_t i, char out[PLACE_PATH_MAX]);
/* A regular file with these bytes. */
bool place_is_intact(const char *path, const kn_digest sha256);

KN_MUST_USE int place_data(const struct folder *o, size_t i, const void *data, size_t len,
                           struct kn_err *err);
/* A copy of the file `from`: of the same blocks where the file system can. */
KN_MUST_USE int place_copy(const struct folder *o, size_t i, const char *from, struct kn_err *err);
/* The farm's object as o->placing says. KN_ENOENT: it is not within reach here, or not intact. */
KN_MUST_USE int place_object(const struct folder *o, const char *objects_dir, size_t i,
                             const kn_digest sha256, struct kn_err *err);

#endif
