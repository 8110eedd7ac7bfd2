/* See the header. */
#include "kernels/io/json.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#include "base/json.h"
#include "base/buf.h"
#include "base/fs.h"

#define DEPTH_MAX 16

int kx_json_parse(const char *file, const char *text, size_t len, struct kx_json *out, struct kn_err *err) {
    *out = (struct kx_json){.file = file};
    if (len > KX_JSON_BYTES_MAX)
        return kn_err_set(err, KN_ELIMIT, "%s: over %u bytes", file, KX_JSON_BYTES_MAX);
    enum json_tokener_error je;
    size_t used;
    json_object *o = kn_json_parse(text, len, DEPTH_MAX, &used, &je);
    if (je == json_tokener_error_size) return kn_err_set(err, KN_ENOMEM, "%s: out of memory", file);
    while (je == json_tokener_success && used < len && strchr(" \t\r\n", text[used]) && text[used]) used++;
    if (je != json_tokener_success || used != len || !json_object_is_type(o, json_type_object)) {
        int line = 1;
        for (size_t i = 0; i < used && i < len; i++) line += text[i] == '\n';
        json_object_put(o);
        return kn_err_set(err, KN_EPARSE, "%s:%d: not a JSON object: %s", file, line,
                          je == json_tokener_success    ? "something else"
                          : je == json_tokener_continue ? "it ends in the middle"
                                                        : json_tokener_error_desc(je));
    }
    out->o = o;
    return 0;
}

int kx_json_load(const char *path, struct kx_json *out, struct kn_err *err) {
    *out = (struct kx_json){.file = path};
    struct kn_buf b;
    kn_buf_init(&b, KX_JSON_BYTES_MAX);
    int rc = kn_fs_read(path, &b, err);
    if (!rc) rc = kx_json_parse(path, b.data ? b.data : "", b.len, out, err);
    kn_buf_fini(&b);
    return rc;
}

json_object *kx_json_get(const struct kx_json *j, const char *key) {
    json_object *v = NULL;
    return json_object_object_get_ex(j->o, key, &v) ? v : NULL;
}

static int wrong(const struct kx_json *j, const char *key, const char *what, struct kn_err *err) {
    return kn_err_set(err, KN_EPARSE, "%s: %s: %s", j->file, key, what);
}

static int as_int(const struct kx_json *j, const char *key, json_object *v, int min, int max, int *out,
                  struct kn_err *err) {
    double d = 0;
    if (json_object_is_type(v, json_type_int))
        d = (double)json_object_get_int64(v);
    else if (json_object_is_type(v, json_type_double)) /* some writers say 1.0 */
        d = json_object_get_double(v);
    else
        return wrong(j, key, "not a whole number", err);
    if (d != floor(d)) return wrong(j, key, "not a whole number", err);
    if (d < min || d > max)
        return kn_err_set(err, KN_EPARSE, "%s: %s: %.17g is not between %d and %d", j->file, key, d, min,
                          max);
    *out = (int)d;
    return 0;
}

int kx_json_int(const struct kx_json *j, const char *key, int min, int max, int *out, struct kn_err *err) {
    json_object *v = kx_json_get(j, key);
    return v ? as_int(j, key, v, min, max, out, err) : 0;
}

int kx_json_double(const struct kx_json *j, const char *key, double min, double max, double *out,
                   struct kn_err *err) {
    json_object *v = kx_json_get(j, key);
    if (!v) return 0;
    if (!json_object_is_type(v, json_type_double) && !json_object_is_type(v, json_type_int))
        return wrong(j, key, "not a number", err);
    double d = json_object_get_double(v);
    if (!(d >= min && d <= max))
        return kn_err_set(err, KN_EPARSE, "%s: %s: %g is not between %g and %g", j->file, key, d, min, max);
    *out = d;
    return 0;
}

int kx_json_float(const struct kx_json *j, const char *key, double min, double max, float *out,
                  struct kn_err *err) {
    double d = (double)*out;
    int rc = kx_json_double(j, key, min, max, &d, err);
    *out = (float)d;
    return rc;
}

int kx_json_bool(const struct kx_json *j, const char *key, bool *out, struct kn_err *err) {
    json_object *v = kx_json_get(j, key);
    if (!v) return 0;
    if (!json_object_is_type(v, json_type_boolean)) return wrong(j, key, "neither true nor false", err);
    *out = json_object_get_boolean(v);
    return 0;
}

int kx_json_string(const struct kx_json *j, const char *key, const char **out, struct kn_err *err) {
    json_object *v = kx_json_get(j, key);
    if (!v) return 0;
    if (!json_object_is_type(v, json_type_string)) return wrong(j, key, "not a string", err);
    if (strlen(json_object_get_string(v)) != (size_t)json_object_get_string_len(v))
        return wrong(j, key, "holds a NUL", err);
    *out = json_object_get_string(v);
    return 0;
}

int kx_json_word(const struct kx_json *j, const char *key, const char *const *words, int *out,
                 struct kn_err *err) {
    const char *s = NULL;
    int rc = kx_json_string(j, key, &s, err);
    if (rc || !s) return rc;
    for (int i = 0; words[i]; i++)
        if (!strcmp(s, words[i])) {
            *out = i;
            return 0;
        }
    return kn_err_set(err, KN_EUNSUPPORTED, "%s: %s: \"%.64s\" is not supported", j->file, key, s);
}

int kx_json_ints(const struct kx_json *j, const char *key, int min, int max, int *out, int count,
                 struct kn_err *err) {
    json_object *v = kx_json_get(j, key);
    if (!v) return 0;
    if (!json_object_is_type(v, json_type_array)) {
        int one = 0, rc = as_int(j, key, v, min, max, &one, err);
        for (int i = 0; i < count && !rc; i++) out[i] = one;
        return rc;
    }
    if (json_object_array_length(v) != (size_t)count)
        return kn_err_set(err, KN_EPARSE, "%s: %s: %zu values where %d are needed", j->file, key,
                          json_object_array_length(v), count);
    int rc = 0;
    for (int i = 0; i < count && !rc; i++) {
        json_object *e = json_object_array_get_idx(v, (size_t)i);
        if (json_object_is_type(e, json_type_array))
            rc = kn_err_set(err, KN_EUNSUPPORTED, "%s: %s: lists inside of the list are not supported",
                            j->file, key);
        else
            rc = as_int(j, key, e, min, max, &out[i], err);
    }
    return rc;
}

int kx_json_only(const struct kx_json *j, const char *key, const char *json, struct kn_err *err) {
    json_object *v = kx_json_get(j, key);
    if (!v) return 0;
    json_object *only = json_tokener_parse(json);
    bool same = only && json_object_equal(v, only);
    bool numbers =
        only && json_object_is_type(v, json_type_double) && json_object_is_type(only, json_type_int);
    if (numbers) same = json_object_get_double(v) == json_object_get_double(only);
    json_object_put(only);
    if (same) return 0;
    return kn_err_set(err, KN_EUNSUPPORTED, "%s: %s: %.80s is not supported", j->file, key,
                      json_object_to_json_string_ext(v, JSON_C_TO_STRING_PLAIN));
}
