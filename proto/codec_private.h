/* Shared by codec.c and chunk.c, and by nobody else: protobuf-c's types end here. */
#ifndef KN_PROTO_CODEC_PRIVATE_H
#define KN_PROTO_CODEC_PRIVATE_H

#include "kiln.pb-c.h"
#include "proto/arena.h"
#include "proto/codec.h"

/* A decoded message and all that it points to. */
struct codec_owned {
    struct kn_msg msg; /* first: a kn_msg * is a codec_owned * */
    struct arena arena;
};

/* NULL: out of memory. The strings are borrowed. */
Kiln__Pb__Task **codec_tasks_to_pb(struct arena *a, const struct kn_task *tasks, size_t count);
/* Validates each; strings are borrowed from pb. model_count 0: model_index is not looked at. */
KN_MUST_USE int codec_tasks_from_pb(struct arena *a, Kiln__Pb__Task *const *pb, size_t count,
                                    size_t model_count, struct kn_task **out, struct kn_err *err);

#endif
