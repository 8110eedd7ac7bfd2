/* A line of manifest.jsonl, strictly read: every field there, of its type, in its range. */
#ifndef KILN_CLI_FOLDER_MANIFEST_H
#define KILN_CLI_FOLDER_MANIFEST_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdio.h>

#include "proto/codec.h"

#define MANIFEST_LINE_MAX (256u << 10) /* the longest prompts, every byte of them escaped */

struct manifest_line {
    uint32_t number; /* of the line; set by the caller */
    uint32_t index, width, height, attempt, render_ms;
    enum kn_result_status status;
    bool flat;
    kn_digest model_sha256, key, key_computed;
    kn_digest sha256, pixels_sha256; /* done only */
    char *file;                      /* done only; owned by whom manifest_read() gave it to */
};

/* The next line without its newline into line[MANIFEST_LINE_MAX]. 1; 0: the file's end; KN_ELIMIT: too long
 * (it has been skipped); KN_EIO. *ended: it had its newline. */
KN_MUST_USE int manifest_next(FILE *f, char *line, size_t *len, bool *ended);
/* err names the field ("seed: is missing"). KN_EPARSE. */
/* out->file is the caller's to free in any case. */
KN_MUST_USE int manifest_read(const char *text, size_t len, struct manifest_line *out, struct kn_err *err);
/* A JSON value with nothing behind it but blanks, or NULL. The caller puts it. */
json_object *manifest_parse(const char *text, size_t len, int depth);

#endif
