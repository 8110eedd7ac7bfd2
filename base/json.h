/* JSON in UTF-8, as strict as json-c can be.
 *
 * json-c 0.18 (Debian 13) refuses every string beyond ASCII when it is told to be strict, and earlier ones do not
 * validate keys. So the text is given to it in ASCII: a character beyond becomes \uXXXX, which means the same
 * wherever JSON allows that character, and is an error wherever it does not. */
#ifndef KN_BASE_JSON_H
#define KN_BASE_JSON_H

#include <json-c/json.h>
#include <stddef.h>

/* The value with which the text begins, the caller's to put back; NULL when there is none: also for the text "null", which
 * *why (json_tokener_success) tells apart. *used: bytes of the text that were read, up to the fault if there is
 * one; what follows them is for the caller to judge. depth: of nested values. used and why may be NULL. */
json_object *kn_json_parse(const char *text, size_t len, int depth, size_t *used,
                           enum json_tokener_error *why);

#endif
