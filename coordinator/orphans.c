/* See orphans.h. */
#include "coordinator/orphans.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"

#define ORPHANS_MAX 100000

int orphans_init(struct server *s) {
    s->orphans = kn_map_create(ORPHANS_MAX);
    return s->orphans ? 0 : KN_ENOMEM;
}

void orphans_add(struct server *s, const uint8_t sha256[KN_SHA256_BYTES]) {
    uint8_t *copy = malloc(KN_SHA256_BYTES);
    if (!copy) return;
    memcpy(copy, sha256, KN_SHA256_BYTES);
    if (kn_map_put(s->orphans, sha256, KN_SHA256_BYTES, copy) != 0) free(copy);
}

void orphans_keep_named(struct server *s) {
    size_t pos = 0;
    struct kept_batch *b;
    struct store_record r;
    while ((b = kn_map_next(s->batches.by_id, &pos))) {
        if (b->phase == BATCH_REMOVING) continue;
        for (uint32_t i = 0; b->records && i < b->tasks; i++)
            if (batch_record(b, i, &r)) collect_keep(s->collect, r.sha256);
    }
    for (struct commit *c = s->commits; c; c = c->next) collect_keep(s->collect, c->sha256);
    collect_keep_busy(s->collect);
}

/* Forgets them all; discard: and gives those that nobody names to the collector. */
static void empty(struct server *s, bool discard) {
    size_t pos = 0;
    uint8_t *x;
    if (!s->orphans || (discard && kn_map_count(s->orphans) == 0)) return;
    while ((x = kn_map_next(s->orphans, &pos))) {
        if (discard && collect_discard(s->collect, x) != 0) kn_debug("orphan_stays");
        free(x);
    }
    kn_map_destroy(s->orphans);
    s->orphans = discard ? kn_map_create(ORPHANS_MAX) : NULL;
    if (discard) orphans_keep_named(s);
}

void orphans_sweep(struct server *s) {
    empty(s, true);
}

void orphans_fini(struct server *s) {
    empty(s, false);
}
