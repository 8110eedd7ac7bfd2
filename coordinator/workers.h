/* Who talks to workers: what they say on the control socket, the pictures that they bring on the data socket,
 * and the models that they have. */
#ifndef KILN_COORDINATOR_WORKERS_H
#define KILN_COORDINATOR_WORKERS_H

#include "coordinator/server.h"

/* A message on the control socket. False: no worker sends such a message, and msg is still the caller's. */
bool workers_message(struct server *s, struct listener *l, const struct kn_peer *peer, struct kn_msg *msg);
/* A message that could not be decoded: a worker whose hello it was is told why. */
void workers_garbled(struct listener *l, const struct kn_peer *peer, const struct kn_garbled *g);
/* An ImageResult on the data socket, and the picture's bytes; takes both. */
void workers_image(struct server *s, const struct kn_peer *peer, struct kn_msg *msg, struct kn_blob *blob);
/* Answers the client once the worker itself has said that it drains, or has left: until then its coordinator's death
 * could take the wish with it. */
void workers_await_drain(struct server *s, const char *worker, const struct reply_to *to);
/* Tells all workers to send what is not acknowledged. */
void workers_want_pictures(struct server *s);
/* Whoever came with that key is not a worker of this farm any more: its work goes back. */
void workers_revoke(struct server *s, const struct kn_public_key *key, const char *why);
void workers_forget(struct server *s); /* those that the core has forgotten */
void workers_fini(struct server *s);

/* A model that some worker has. By hash, or by name when sha256 is all zero. KN_EMODEL says what there is. */
KN_MUST_USE int workers_model(struct server *s, const char *name, const uint8_t sha256[KN_SHA256_BYTES],
                              struct kn_model_info *out, struct kn_err *err);
/* The models of all workers by their hash, to kn_map_destroy(): for whoever wants many. NULL: out of memory. */
struct kn_map *workers_model_index(struct server *s); /* -> const struct kn_model_info, of the hellos */
const char *workers_model_name(struct server *s, const uint8_t sha256[KN_SHA256_BYTES]); /* "" when unknown */
/* All models that workers have, each once; free() the list. */
KN_MUST_USE int workers_models(struct server *s, struct kn_model_info **out, size_t *count);

/* Tells the store of every model that is remembered. */
KN_MUST_USE int workers_store_models(struct server *s);
/* A model that some worker announced is remembered, also by the store; wall_ms 0: just now. */
void workers_remember_model(struct server *s, const struct kn_model_info *m, uint64_t wall_ms);

#endif
