/* From a file's bytes to text that the readers of prompts can take: UTF-8 without a NUL, without a byte
 * order mark at its beginning, every line ended by '\n' alone. UTF-16 with its mark is converted; any
 * other encoding is refused, with the command that converts it. Private to base/. */
#ifndef KN_BASE_DECODE_H
#define KN_BASE_DECODE_H

#include "base/record.h"

/* *out, *out_len: the text, within `bytes` where nothing had to be changed, else within `room`, which is
 * empty and the caller's to free. A CR LF and a lone CR become LF: each ends a line for every program. `ending`
 * is the format's, for the command in a message ("csv"). On failure r->err names the line. */
KN_MUST_USE int kn_decode(struct kn_reader *r, const char *bytes, size_t len, const char *ending,
                          struct kn_spill *room, const char **out, size_t *out_len);

/* The name of the first character of [p, end) that ends a line for some programs and is text for others
 * (vertical tab, form feed, U+001C to U+001E, NEL, U+2028, U+2029), or of a byte order mark, which two
 * files joined leave behind; *at is its offset. NULL: there is none. Outside of quotes such a character is
 * refused: whatever was meant, two prompts must not become one in silence. */
const char *kn_stray_break(const char *p, const char *end, size_t *at);

#endif
