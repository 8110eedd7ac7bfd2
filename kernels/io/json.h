/* Reading a model folder's JSON files: every message names file and field. null counts as "not there", as
 * diffusers' writers mean it. json-c inside; any thread, one object at a time. */
#ifndef KILN_KERNELS_JSON_H
#define KILN_KERNELS_JSON_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

#define KX_JSON_BYTES_MAX (32u << 20)

struct kx_json {
    const char *file; /* what stands for it in messages; borrowed */
    json_object *o;   /* an object */
};

/* Parses the bytes as one JSON object, strictly. out->o is owned by the caller (json_object_put). KN_EPARSE.
 */
KN_MUST_USE int kx_json_parse(const char *file, const char *text, size_t len, struct kx_json *out,
                              struct kn_err *err);
/* The same of the file at path, which stands for itself in messages. KN_ENOENT, KN_EIO, KN_EPARSE. */
KN_MUST_USE int kx_json_load(const char *path, struct kx_json *out, struct kn_err *err);

/* NULL: not there or null. */
json_object *kx_json_get(const struct kx_json *j, const char *key);

/* Each leaves *out as it is when the key is not there (so the caller puts the default there first). KN_EPARSE
 * for another type or a value out of range. */
KN_MUST_USE int kx_json_int(const struct kx_json *j, const char *key, int min, int max, int *out,
                            struct kn_err *err);
KN_MUST_USE int kx_json_double(const struct kx_json *j, const char *key, double min, double max, double *out,
                               struct kn_err *err);
KN_MUST_USE int kx_json_float(const struct kx_json *j, const char *key, double min, double max, float *out,
                              struct kn_err *err);
KN_MUST_USE int kx_json_bool(const struct kx_json *j, const char *key, bool *out, struct kn_err *err);
/* Borrowed from the object. */
KN_MUST_USE int kx_json_string(const struct kx_json *j, const char *key, const char **out,
                               struct kn_err *err);
/* The place of the string in words (NULL-terminated); a string that is none of them is KN_EUNSUPPORTED. */
KN_MUST_USE int kx_json_word(const struct kx_json *j, const char *key, const char *const *words, int *out,
                             struct kn_err *err);
/* One number for all, or an array of exactly `count`. */
KN_MUST_USE int kx_json_ints(const struct kx_json *j, const char *key, int min, int max, int *out, int count,
                             struct kn_err *err);
/* KN_EUNSUPPORTED unless the key is absent, null, or equal to this JSON text ("false", "1", "\"default\"").
 */
KN_MUST_USE int kx_json_only(const struct kx_json *j, const char *key, const char *json, struct kn_err *err);

#endif
