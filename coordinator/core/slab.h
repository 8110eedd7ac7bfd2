/* Equal elements addressed by number. Elements never move; a number is used again after slab_give. Private to
 * coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_SLAB_H
#define KILN_COORDINATOR_CORE_SLAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

struct slab {
    size_t size;      /* of an element */
    uint32_t max;     /* elements */
    uint8_t **chunks; /* owns */
    uint32_t chunk_count, chunk_cap;
    uint32_t *free;             /* owns; a stack of the numbers that are free */
    uint32_t free_count, total; /* total: free and taken */
};

void slab_init(struct slab *s, size_t size, uint32_t max);
void slab_fini(struct slab *s);
/* Afterwards `more` calls of slab_take succeed. KN_ELIMIT, KN_ENOMEM. */
KN_MUST_USE int slab_reserve(struct slab *s, uint32_t more);
/* A zeroed element; asserts that one is free. */
uint32_t slab_take(struct slab *s);
/* The number is free again. */
void slab_give(struct slab *s, uint32_t slot);
/* The element of a number, taken or free (then its bytes are those of its last use). Asserts the range. */
void *slab_at(const struct slab *s, uint32_t slot);
static inline uint32_t slab_used(const struct slab *s) {
    return s->total - s->free_count;
}

#endif
