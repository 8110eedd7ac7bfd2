/* Between frames and messages: plain, validated C structs, which messages.h lists.
 *
 * A decoded message owns everything in it (one block, freed by kn_msg_destroy): pointers inside live as long
 * as the message. For encoding, pointers are borrowed during the call. Decoding checks version, every length
 * against base/limits.h, UTF-8 of strings, sizes of digests and ids, enum ranges and finite floats: what
 * comes out is safe to use. KN_EPROTO (malformed), KN_EVERSION, KN_ELIMIT.
 *
 * protobuf-c is seen in codec.c, chunk.c and arena.c alone. */
#ifndef KN_PROTO_CODEC_H
#define KN_PROTO_CODEC_H

#include "base/buf.h"
#include "base/err.h"
#include "proto/messages.h"

#define KN_PROTO_VERSION 1     /* of every message but those that its first programs must not take */
#define KN_PROTO_VERSION_MAX 2 /* of those */

/* Decodes one frame; *out is the caller's to destroy. */
KN_MUST_USE int kn_msg_decode(const void *data, size_t len, struct kn_msg **out, struct kn_err *err);
/* The little that is known of a frame that could not be decoded, so that it can be answered. */
struct kn_garbled {
    enum kn_msg_type type; /* 0: none that is known here */
    uint64_t request;      /* 0: none */
    uint64_t shard, term;  /* of a ShardGrant */
    int code;              /* why it could not be decoded, */
    const char *text;      /* and in words; both are the caller's to set */
};
void kn_msg_look(const void *data, size_t len, struct kn_garbled *out);
void kn_msg_destroy(struct kn_msg *m); /* one made by kn_msg_decode; NULL is fine */
/* Appends the encoded frame. KN_ELIMIT when it is over KN_FRAME_BYTES_MAX. */
KN_MUST_USE int kn_msg_encode(const struct kn_msg *m, struct kn_buf *out, struct kn_err *err);
const char *kn_msg_name(enum kn_msg_type type); /* "shard_grant", for logs */

/* A batch's tasks travel and rest as deflated TaskChunks of at most KN_TASKS_PER_CHUNK_MAX tasks. Packing
 * asserts resolved tasks. */
KN_MUST_USE int kn_chunk_pack(const struct kn_task *tasks, size_t count, struct kn_buf *out,
                              struct kn_err *err);
struct kn_chunk {
    struct kn_task *v; /* owns; their strings are in `texts` */
    size_t count;
    char *texts; /* owns */
};
/* Inflates at most KN_CHUNK_BYTES_MAX, validates each task (kn_task_check, all fields set, model_index <
 * model_count). */
KN_MUST_USE int kn_chunk_unpack(const void *data, size_t len, size_t model_count, struct kn_chunk *out,
                                struct kn_err *err);
void kn_chunk_fini(struct kn_chunk *c);

#endif
