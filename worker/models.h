/* The models that this worker has. Their folders are read for names, defaults and hashes; no weights are
 * loaded. */
#ifndef KILN_WORKER_MODELS_H
#define KILN_WORKER_MODELS_H

#include "worker/engine.h"

struct model_list {
    struct engine_model *v; /* owns, with the strings in it */
    size_t count, cap;
};

/* A model without a folder. */
KN_MUST_USE int models_add(struct model_list *l, const struct kn_model_info *info, struct kn_err *err);
/* One model's folder. A fault in it is an error. */
KN_MUST_USE int models_add_folder(struct model_list *l, const char *dir, struct kn_err *err);
/* A folder of models' folders, or a model's folder itself. One among many that cannot be read is told in the
 * log and left out. KN_ENOENT: there is no model in it. */
KN_MUST_USE int models_add_tree(struct model_list *l, const char *dir, struct kn_err *err);
void models_fini(struct model_list *l);
/* Appends the JSON that `kiln-worker --describe-model` prints; cli/talk/model.c reads it. */
KN_MUST_USE int models_describe(const struct kn_model_info *m, struct kn_buf *out);

#endif
