/* A bump allocator with a maximum: everything that belongs to one message, freed at once. Used by the codec,
 * where it also serves protobuf-c, so that a decoded message's strings lie where protobuf-c put them. One
 * owner. */
#ifndef KN_PROTO_ARENA_H
#define KN_PROTO_ARENA_H

#include <stddef.h>
#include <protobuf-c/protobuf-c.h>

struct arena_block;

struct arena {
    struct arena_block *blocks; /* owns; the newest first */
    size_t used, max;           /* bytes handed out, and their maximum */
    ProtobufCAllocator pb;      /* allocates from this arena; free does nothing */
};

void arena_init(struct arena *a, size_t max);
void arena_fini(struct arena *a);
/* Zeroed, aligned for anything; NULL when over the maximum or out of memory. */
void *arena_alloc(struct arena *a, size_t bytes);
void *arena_array(struct arena *a, size_t count, size_t size); /* checks the product */

#endif
