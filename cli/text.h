/* Words and numbers as a person reads them, and the manifest's JSON. */
#ifndef KILN_CLI_TEXT_H
#define KILN_CLI_TEXT_H

#include <json-c/json.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/buf.h"

#define CLI_DURATION_MAX 24

/* "8 s", "3 min 20 s", "2 h 5 min", "4 d 3 h"; "?" for a negative one. */
const char *text_duration(int64_t ms, char out[CLI_DURATION_MAX]);
/* Prints a text so that a terminal shows all of it and obeys none of it, whoever wrote it: a prompt, a name, a
 * reason. Newlines of the format stay. Everything that kiln tells a person goes through here or text_fit(). */
void text_print(FILE *out, const char *fmt, ...) KN_PRINTF(2, 3);
void text_vprint(FILE *out, const char *fmt, va_list ap);
/* At most `width` columns of UTF-8 text on one line, cut with "…", padded with blanks when pad. */
void text_fit(const char *text, int width, int pad, char *out, size_t out_max);
/* One line of JSON, slashes as they are. Appends to out, without a newline. */
KN_MUST_USE int text_json(json_object *o, struct kn_buf *out);
/* A float as the shortest decimal that reads back the same. */
json_object *text_json_float(float v);
/* Rounded to 3 decimals. */
json_object *text_json_rate(double v);

#endif
