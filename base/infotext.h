/* Generation data as A1111 writes it into pictures and shows it under them ("infotext"), and as people paste
 * it:
 *
 *     a cat,
 *     sitting
 *     Negative prompt: blurry
 *     Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 123, Size: 512x768, Model: tiny
 *
 * The line of settings ends the block. A value that holds a comma, a colon or a newline is a JSON string
 * in it. Private to base/; the blocks of a file are cut in prompts_txt.c. */
#ifndef KN_BASE_INFOTEXT_H
#define KN_BASE_INFOTEXT_H

#include "base/record.h"

/* True if [p, end), a line without blanks at its ends, is a line of settings: it begins with the pair Steps,
 * whose value is a number; or it is at least three pairs "Key: value" and nothing else, and Steps is one of
 * them. */
bool kn_is_settings_line(const char *p, const char *end);
/* Reads such a line into rec. A key that kiln does not have is KN_EUNSUPPORTED, unless it changes no
 * picture: then it is kept in `extra`. */
KN_MUST_USE int kn_settings_line_read(const struct kn_reader *r, struct kn_record *rec, const char *p,
                                      const char *end);

#endif
