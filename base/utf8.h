/* UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing past U+10FFFF. Libc only. */
#ifndef KN_BASE_UTF8_H
#define KN_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* How many of the first bytes are well-formed whole characters; `len` when all are. A 0 byte is well-formed
 * here. */
size_t kn_utf8_span(const char *text, size_t len);
/* The most bytes, `max` at most, that end at a character's end: where to cut a text that is well-formed. */
size_t kn_utf8_cut(const char *text, size_t len, size_t max);

/* Copies text so that a terminal shows all of it and obeys none: control characters (C0, DEL, C1), marks that
 * turn the direction of writing, line and paragraph separators become \x1b or \u202e, bytes that are no UTF-8
 * \xff. A newline stays where `lines` is set. Cut at a whole character where out is full. Returns its length. */
size_t kn_utf8_visible(const char *text, bool lines, char *out, size_t out_max);

#endif
