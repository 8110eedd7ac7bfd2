/* A pool of equal elements addressed by number. Elements never move; a number is used again after slab_give.
 * Private to coordinator/core. */
#ifndef KILN_COORDINATOR_CORE_SLAB_H
#define KILN_COORDINATOR_CORE_SLAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

struct slab {
    size_t size; /* of an element */
    uint32_t max;
    uint8_t **chunks; /* owns */
    uint32_t chunk_count, chunk_cap;
    uint32_t *free; /* owns; a stack of the numbers that are free */
    uint32_t free_count, total;
};

void slab_init(struct slab *s, size_t size, uint32_t max);
void slab_fini(struct slab *s);
/* Afterwards `more` calls of slab_take succeed. KN_ELIMIT, KN_ENOMEM. */
KN_MUST_USE int slab_reserve(struct slab *s, uint32_t more);
/* A zeroed element; asserts that one is free. */
uint32_t slab_take(struct slab *s);
void slab_give(struct slab *s, uint32_t slot);
void *slab_at(const struct slab *s, uint32_t slot);
static inline uint32_t slab_used(const struct slab *s) {
    return s->total - s->free_count;
}

#endif
