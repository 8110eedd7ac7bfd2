/* UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing past U+10FFFF. Libc only. */
#ifndef KN_BASE_UTF8_H
#define KN_BASE_UTF8_H

#include <stddef.h>

/* How many of the first bytes are well-formed whole characters; `len` when all are. A 0 byte is well-formed
 * here. */
size_t kn_utf8_span(const char *text, size_t len);
/* The most bytes, `max` at most, that end at a character's end: where to cut a text that is well-formed. */
size_t kn_utf8_cut(const char *text, size_t len, size_t max);

#endif
