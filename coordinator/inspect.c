/* See inspect.h. A worker that no memory can be found for is inspected as a new one, wholly. */
#include "coordinator/inspect.h"

#include <string.h>

#include "base/log.h"

#define WORKERS_KEPT (2 * KN_WORKERS_MAX)

/* What the map holds of a worker: it needs no more than one of two values. */
static char well, wrong;

bool inspect_wanted(const struct server *s, const char *worker, const kn_digest sha256) {
    const char *known = s->inspected ? kn_map_get(s->inspected, worker, strlen(worker)) : NULL;
    uint64_t seed;
    memcpy(&seed, s->store->secret, sizeof seed); /* so that nobody else can know which are looked at */
    return known != &well || kn_hash64(sha256, sizeof(kn_digest), seed) % INSPECT_ONE_IN == 0;
}

static void note(struct server *s, const char *worker, char *how) {
    if (!s->inspected && !(s->inspected = kn_map_create(WORKERS_KEPT))) return;
    int rc = kn_map_put(s->inspected, worker, strlen(worker), how);
    if (rc != 0 && rc != KN_EEXIST) kn_debug("inspection_not_noted worker=%s code=%d", worker, rc);
}

void inspect_good(struct server *s, const char *worker) {
    note(s, worker, &well);
}

void inspect_bad(struct server *s, const char *worker) {
    if (s->inspected) kn_map_remove(s->inspected, worker, strlen(worker));
    note(s, worker, &wrong);
}

void inspect_fini(struct server *s) {
    kn_map_destroy(s->inspected);
    s->inspected = NULL;
}
