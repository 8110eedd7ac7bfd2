/* One example of each message, every field set to something that is not its default, and a comparison; both
 * are made from the rows of proto/messages.h. Memory that an example points to is static. */
#ifndef KN_TESTS_UNIT_PROTO_MESSAGES_H
#define KN_TESTS_UNIT_PROTO_MESSAGES_H

#include "proto/codec.h"

extern const enum kn_msg_type proto_types[];
extern const size_t proto_type_count;
void proto_example(enum kn_msg_type type, struct kn_msg *out);
/* Field by field; stops the test at the first that differs. */
void proto_check_same(const struct kn_msg *a, const struct kn_msg *b);

#endif
