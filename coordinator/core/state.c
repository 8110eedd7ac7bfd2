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
    struct pin *p = kn_map_get(f->pin_by_name, name, strlen(name));
    if (p) p->backend = *out;
    return KN_OK;
}

int farm_pin_get(struct farm *f, const char *name, struct pin **out) {
    size_t len = strlen(name);
    if (len == 0 || len > KN_BACKEND_MAX) return KN_EINVAL;
    struct pin *p = kn_map_get(f->pin_by_name, name, len);
    if (!p) {
        p = calloc(1, sizeof *p);
        if (!p || !(p->name = strdup(name)) || kn_map_put(f->pin_by_name, name, len, p) != 0) {
            if (p) free(p->name);
            free(p);
            return KN_ENOMEM;
        }
        p->backend = BACKEND_NONE;
        for (uint32_t i = 0; i < f->backend_count; i++)
            if (strcmp(f->backends[i].name, name) == 0) p->backend = i;
    }
    p->refs++;
    *out = p;
    return KN_OK;
}

void farm_pin_put(struct farm *f, struct pin *p) {
    if (!p || --p->refs > 0) return;
    kn_map_remove(f->pin_by_name, p->name, strlen(p->name));
    free(p->name);
    free(p);
}

const char *farm_backend_name(const struct farm *f, uint32_t backend) {
    return backend < f->backend_count ? f->backends[backend].name : "";
}
