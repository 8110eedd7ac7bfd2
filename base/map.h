/* A hash map from byte-string keys to pointers, open addressing, with a maximum. Libc only; one owner.
 * Keys are copied; values are borrowed. Iteration order depends on the history of inserts alone (never on
 * addresses), so that the core replays bit for bit. */
#ifndef KN_BASE_MAP_H
#define KN_BASE_MAP_H

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

struct kn_map;

struct kn_map *kn_map_create(size_t count_max);
void kn_map_destroy(struct kn_map *m); /* NULL is fine; values are not touched */
void *kn_map_get(const struct kn_map *m, const void *key, size_t key_len); /* NULL: none */
/* KN_EEXIST when the key is there; KN_ELIMIT; KN_ENOMEM. value must not be NULL. */
KN_MUST_USE int kn_map_put(struct kn_map *m, const void *key, size_t key_len, void *value);
void *kn_map_remove(struct kn_map *m, const void *key,
                    size_t key_len); /* the value that was there, or NULL */
size_t kn_map_count(const struct kn_map *m);
/* Iterates: *pos starts at 0; returns the next value or NULL at the end. Do not change the map meanwhile. */
void *kn_map_next(const struct kn_map *m, size_t *pos);

#endif
