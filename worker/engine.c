/* Which engine a word names. See engine.h. */
#include "worker/engine.h"

#include <string.h>

int engine_open(const struct engine_options *opt, struct engine_model *models, size_t model_count,
                struct engine **out, struct kn_err *err) {
    int rc;
    *out = NULL;
    if (engine_is_sim(opt->spec))
        rc = engine_sim_open(opt, out, err);
    else if (strcmp(opt->spec, "cpu") == 0 || strcmp(opt->spec, "cuda") == 0)
        rc = engine_kiln_open(opt, out, err);
    else
        rc = kn_err_set(err, KN_EINVAL, "%.64s: not an engine; there are cpu, cuda and sim[:ms=50,…]",
                        opt->spec);
    if (rc != 0) return rc;
    (*out)->models = models;
    (*out)->model_count = model_count;
    (*out)->now = opt->now ? opt->now : &(*out)->own;
    return 0;
}

void engine_close(struct engine *e) {
    if (e) e->ops->close(e);
}

const struct kn_model_info *engine_model(const struct engine *e, const uint8_t sha256[KN_SHA256_BYTES]) {
    for (size_t i = 0; i < e->model_count; i++)
        if (memcmp(e->models[i].info.sha256, sha256, KN_SHA256_BYTES) == 0) return &e->models[i].info;
    return NULL;
}

unsigned engine_place(const struct engine *e, const struct kn_model_info *model) {
    for (size_t i = 0; i < e->model_count; i++)
        if (&e->models[i].info == model) return (unsigned)i + 1;
    return 0;
}
