/* Elements addressed by number. The contract is slab.h.
 *
 * Elements lie in chunks of a fixed number; a stack of free numbers has room for all of them, so that giving
 * back needs no memory. The lowest numbers go out first: the order depends on nothing but the history of
 * takes and gives. */
#include "coordinator/core/slab.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define SLAB_CHUNK 256u

void slab_init(struct slab *s, size_t size, uint32_t max) {
    *s = (struct slab){.size = size, .max = max};
}

void slab_fini(struct slab *s) {
    for (uint32_t i = 0; i < s->chunk_count; i++) free(s->chunks[i]);
    free(s->chunks);
    free(s->free);
    *s = (struct slab){0};
}

static int slab_grow(struct slab *s) {
    if (s->total >= s->max) return KN_ELIMIT;
    if (s->chunk_count == s->chunk_cap) {
        uint32_t cap = s->chunk_cap ? s->chunk_cap * 2 : 4;
        uint8_t **chunks = realloc(s->chunks, cap * sizeof *chunks);
        if (!chunks) return KN_ENOMEM;
        s->chunks = chunks;
        uint32_t *stack = realloc(s->free, (size_t)cap * SLAB_CHUNK * sizeof *stack);
        if (!stack) return KN_ENOMEM;
        s->free = stack;
        s->chunk_cap = cap;
    }
    uint8_t *chunk = calloc(SLAB_CHUNK, s->size);
    if (!chunk) return KN_ENOMEM;
    s->chunks[s->chunk_count++] = chunk;
    /* The new numbers go below those that are free already, the lowest on top. */
    memmove(s->free + SLAB_CHUNK, s->free, s->free_count * sizeof *s->free);
    for (uint32_t i = 0; i < SLAB_CHUNK; i++) s->free[i] = s->total + SLAB_CHUNK - 1 - i;
    s->free_count += SLAB_CHUNK;
    s->total += SLAB_CHUNK;
    return KN_OK;
}

int slab_reserve(struct slab *s, uint32_t more) {
    while (s->free_count < more) {
        int rc = slab_grow(s);
        if (rc) return rc;
    }
    return KN_OK;
}

void *slab_at(const struct slab *s, uint32_t slot) {
    assert(slot < s->total);
    return s->chunks[slot / SLAB_CHUNK] + (slot % SLAB_CHUNK) * s->size;
}

uint32_t slab_take(struct slab *s) {
    assert(s->free_count > 0);
    uint32_t slot = s->free[--s->free_count];
    memset(slab_at(s, slot), 0, s->size);
    return slot;
}

void slab_give(struct slab *s, uint32_t slot) {
    assert(slot < s->total && s->free_count < s->total);
    s->free[s->free_count++] = slot;
}
