/* The ground that the rest of the core stands on: room for what one event may need, and the names of backend
 * classes. The data is in state.h, the contract of what is public in farm.h. */
#include "coordinator/core/state.h"

#include <stdlib.h>

int farm_reserve(struct farm *f, struct farm_effects *fx, uint32_t effects, uint32_t suspects,
                 uint32_t pendings) {
    int rc = fx_reserve(fx, (size_t)effects + 16); /* some more for notes */
    if (rc == 0) rc = slab_reserve(&f->troubles, suspects);
    if (rc == 0) rc = slab_reserve(&f->pieces, suspects);
    if (rc == 0) rc = slab_reserve(&f->faults, suspects);
    if (rc == 0) rc = slab_reserve(&f->pendings, pendings);
    return rc;
}

int farm_backend(struct farm *f, const char *name, uint32_t *out) {
    if (!name || !*name || strlen(name) > KN_BACKEND_MAX) return KN_EINVAL;
    for (uint32_t i = 0; i < f->backend_count; i++) {
        if (strcmp(f->backends[i].name, name) != 0) continue;
        *out = i;
        return KN_OK;
    }
    if (f->backend_count == BACKENDS_MAX) return KN_ELIMIT;
    char *copy = strdup(name);
    if (!copy) return KN_ENOMEM;
    *out = f->backend_count;
    f->backends[f->backend_count++] = (struct backend){.name = copy};
    return KN_OK;
}

const char *farm_backend_name(const struct farm *f, uint32_t backend) {
    return backend < f->backend_count ? f->backends[backend].name : "";
}
