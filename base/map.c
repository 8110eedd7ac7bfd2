/* The hash map; the contract is map.h.
 *
 * Two arrays: `entries` in order of insertion (holes where something was removed) and `index`, a power-of-two
 * table of entry numbers, probed linearly. Iteration walks `entries`, so its order is that of the inserts and
 * depends on no address and no hash. A removal leaves a hole in `entries` and a tombstone in `index`. Each
 * slot that is not empty stands for an entry or a hole, and there is room for half as many entries as slots:
 * the table is never more than half full, tombstones counted. When `entries` is full, put closes the holes
 * and rebuilds both (only put: an iteration sees no move). The hash seed is fixed: the core must replay, and
 * its keys are ids of its own. */
#include "base/map.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

#define MAP_EMPTY UINT32_MAX
#define MAP_TOMB (UINT32_MAX - 1)
#define MAP_COUNT_MAX (UINT32_MAX / 4)
#define MAP_SEED 0x6b696c6eu /* "kiln" */

struct map_entry {
    char *key; /* owns; NULL: a hole */
    size_t key_len;
    void *value; /* borrowed */
    uint64_t hash;
};

struct kn_map {
    struct map_entry *entries;
    size_t used, cap; /* used counts holes */
    uint32_t *index;
    size_t slots; /* a power of two, at least twice cap; or 0 */
    size_t count, count_max;
};

struct kn_map *kn_map_create(size_t count_max) {
    struct kn_map *m = calloc(1, sizeof *m);
    if (m) m->count_max = count_max < MAP_COUNT_MAX ? count_max : MAP_COUNT_MAX;
    return m;
}

void kn_map_destroy(struct kn_map *m) {
    if (!m) return;
    for (size_t i = 0; i < m->used; i++) free(m->entries[i].key);
    free(m->entries);
    free(m->index);
    free(m);
}

/* The slot that holds key, or SIZE_MAX. */
static size_t map_find(const struct kn_map *m, const void *key, size_t key_len, uint64_t hash) {
    if (m->slots == 0) return SIZE_MAX;
    for (size_t s = hash & (m->slots - 1);; s = (s + 1) & (m->slots - 1)) {
        uint32_t e = m->index[s];
        if (e == MAP_EMPTY) return SIZE_MAX;
        if (e == MAP_TOMB) continue;
        const struct map_entry *entry = &m->entries[e];
        if (entry->hash == hash && entry->key_len == key_len && memcmp(entry->key, key, key_len) == 0)
            return s;
    }
}

void *kn_map_get(const struct kn_map *m, const void *key, size_t key_len) {
    size_t s = map_find(m, key, key_len, kn_hash64(key, key_len, MAP_SEED));
    return s == SIZE_MAX ? NULL : m->entries[m->index[s]].value;
}

/* Makes room for one more: closes the holes, grows, and rebuilds the index. Changes nothing on failure. */
static int map_rebuild(struct kn_map *m) {
    size_t cap = 8, slots = 16;
    while (cap < m->count + m->count / 2 + 1) cap *= 2;
    while (slots < 2 * cap) slots *= 2;
    struct map_entry *entries = malloc(cap * sizeof *entries);
    uint32_t *index = malloc(slots * sizeof *index);
    if (!entries || !index) {
        free(entries);
        free(index);
        return KN_ENOMEM;
    }
    memset(index, 0xff, slots * sizeof *index); /* MAP_EMPTY */
    size_t used = 0;
    for (size_t i = 0; i < m->used; i++) {
        if (!m->entries[i].key) continue;
        size_t s = m->entries[i].hash & (slots - 1);
        while (index[s] != MAP_EMPTY) s = (s + 1) & (slots - 1);
        index[s] = (uint32_t)used;
        entries[used++] = m->entries[i];
    }
    assert(used == m->count);
    free(m->entries);
    free(m->index);
    m->entries = entries;
    m->cap = cap;
    m->used = used;
    m->index = index;
    m->slots = slots;
    return KN_OK;
}

int kn_map_put(struct kn_map *m, const void *key, size_t key_len, void *value) {
    assert(value);
    uint64_t hash = kn_hash64(key, key_len, MAP_SEED);
    if (map_find(m, key, key_len, hash) != SIZE_MAX) return KN_EEXIST;
    if (m->count >= m->count_max) return KN_ELIMIT;
    char *copy = malloc(key_len ? key_len : 1);
    if (!copy) return KN_ENOMEM;
    if (key_len) memcpy(copy, key, key_len);
    if (m->used == m->cap) {
        int rc = map_rebuild(m);
        if (rc) {
            free(copy);
            return rc;
        }
    }
    size_t s = hash & (m->slots - 1);
    while (m->index[s] != MAP_EMPTY && m->index[s] != MAP_TOMB) s = (s + 1) & (m->slots - 1);
    m->index[s] = (uint32_t)m->used;
    m->entries[m->used++] = (struct map_entry){copy, key_len, value, hash};
    m->count++;
    return KN_OK;
}

void *kn_map_remove(struct kn_map *m, const void *key, size_t key_len) {
    size_t s = map_find(m, key, key_len, kn_hash64(key, key_len, MAP_SEED));
    if (s == SIZE_MAX) return NULL;
    struct map_entry *entry = &m->entries[m->index[s]];
    void *value = entry->value;
    free(entry->key);
    *entry = (struct map_entry){0};
    m->index[s] = MAP_TOMB;
    m->count--;
    return value;
}

size_t kn_map_count(const struct kn_map *m) {
    return m->count;
}

void *kn_map_next(const struct kn_map *m, size_t *pos) {
    while (*pos < m->used) {
        const struct map_entry *entry = &m->entries[(*pos)++];
        if (entry->key) return entry->value;
    }
    return NULL;
}
