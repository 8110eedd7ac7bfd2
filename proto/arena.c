/* See arena.h. */
#include "proto/arena.h"

#include <stdlib.h>
#include <string.h>

#define ARENA_BLOCK_BYTES 16384

struct arena_block {
    struct arena_block *next;
    size_t used, cap;
    max_align_t data[];
};

static void *pb_alloc(void *ctx, size_t bytes) {
    return arena_alloc(ctx, bytes);
}
static void pb_free(void *ctx, void *p) {
    (void)ctx;
    (void)p;
}

void arena_init(struct arena *a, size_t max) {
    *a = (struct arena){.max = max, .pb = {.alloc = pb_alloc, .free = pb_free, .allocator_data = a}};
}

void arena_fini(struct arena *a) {
    while (a->blocks) {
        struct arena_block *b = a->blocks;
        a->blocks = b->next;
        free(b);
    }
    a->used = 0;
}

void *arena_alloc(struct arena *a, size_t bytes) {
    if (bytes > a->max) return NULL;
    bytes = (bytes + sizeof(max_align_t) - 1) / sizeof(max_align_t) * sizeof(max_align_t);
    if (bytes > a->max - a->used) return NULL;
    struct arena_block *b = a->blocks;
    if (!b || b->cap - b->used < bytes) {
        size_t cap = bytes > ARENA_BLOCK_BYTES ? bytes : ARENA_BLOCK_BYTES;
        b = malloc(sizeof *b + cap);
        if (!b) return NULL;
        b->next = a->blocks;
        b->used = 0;
        b->cap = cap;
        a->blocks = b;
    }
    void *p = (char *)b->data + b->used;
    b->used += bytes;
    a->used += bytes;
    memset(p, 0, bytes);
    return p;
}

void *arena_array(struct arena *a, size_t count, size_t size) {
    if (count > a->max / size) return NULL;
    return arena_alloc(a, count ? count * size : 1);
}
