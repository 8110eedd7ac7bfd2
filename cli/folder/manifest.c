/* See manifest.h. */
#include "cli/folder/manifest.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "cli/folder/images.h"

int manifest_next(FILE *f, char *line, size_t *len, bool *ended) {
    size_t n = 0;
    bool over = false;
    int c;
    while ((c = getc_unlocked(f)) != EOF && c != '\n') {
        if (n < MANIFEST_LINE_MAX - 1)
            line[n++] = (char)c;
        else
            over = true;
    }
    if (c == EOF && ferror(f)) return KN_EIO;
    if (c == EOF && n == 0) return 0;
    line[n] = '\0';
    *len = n;
    *ended = c == '\n';
    return over ? KN_ELIMIT : 1;
}

json_object *manifest_parse(const char *text, size_t len, int depth) {
    enum json_tokener_error why;
    size_t used;
    json_object *v = kn_json_parse(text, len, depth, &used, &why);
    bool whole = why == json_tokener_success;
    for (size_t i = used; whole && i < len; i++)
        whole = text[i] == ' ' || text[i] == '\t' || text[i] == '\n' || text[i] == '\r';
    if (whole) return v;
    json_object_put(v);
    return NULL;
}

/* ---- fields ---- */

enum kind { TEXT, TEXT_OR_NULL, INTEGER, INTEGER_OR_NULL, NUMBER, DIGEST, DIGEST_OR_NULL, OBJECT_OR_NULL };

/* In the order in which they are written. */
static const struct field {
    const char *name;
    enum kind kind;
    bool done; /* null will not do on a `done` line */
} fields[] = {
    {"index", INTEGER, false},
    {"status", TEXT, false},
    {"prompt", TEXT, false},
    {"negative", TEXT, false},
    {"seed", INTEGER, false},
    {"sampler", TEXT, false},
    {"schedule", TEXT, false},
    {"steps", INTEGER, false},
    {"cfg", NUMBER, false},
    {"width", INTEGER, false},
    {"height", INTEGER, false},
    {"model", TEXT, false},
    {"model_sha256", DIGEST, false},
    {"backend", TEXT_OR_NULL, true},
    {"engine", TEXT_OR_NULL, true},
    {"key", DIGEST, false},
    {"file", TEXT_OR_NULL, true},
    {"sha256", DIGEST_OR_NULL, true},
    {"pixels_sha256", DIGEST_OR_NULL, true},
    {"worker", TEXT_OR_NULL, false},
    {"attempt", INTEGER, false},
    {"render_ms", INTEGER_OR_NULL, true},
    {"error", TEXT_OR_NULL, false},
    {"extra", OBJECT_OR_NULL, false},
};

static bool fits(json_object *v, enum kind kind) {
    kn_digest d;
    switch (kind) {
    case TEXT:
        return json_object_is_type(v, json_type_string);
    case TEXT_OR_NULL:
        return !v || json_object_is_type(v, json_type_string);
    case INTEGER:
        return json_object_is_type(v, json_type_int);
    case INTEGER_OR_NULL:
        return !v || json_object_is_type(v, json_type_int);
    case NUMBER:
        return json_object_is_type(v, json_type_int) || json_object_is_type(v, json_type_double);
    case DIGEST_OR_NULL:
        if (!v) return true;
        /* fall through */
    case DIGEST:
        return json_object_is_type(v, json_type_string) &&
               kn_unhex(json_object_get_string(v), d, sizeof d) == KN_OK;
    case OBJECT_OR_NULL:
        return !v || json_object_is_type(v, json_type_object);
    }
    return false;
}

static const char *kind_words(enum kind kind) {
    switch (kind) {
    case TEXT:
    case TEXT_OR_NULL:
        return "text";
    case INTEGER:
    case INTEGER_OR_NULL:
        return "a whole number";
    case NUMBER:
        return "a number";
    case DIGEST:
    case DIGEST_OR_NULL:
        return "a SHA-256";
    case OBJECT_OR_NULL:
        break;
    }
    return "an object";
}

static json_object *get(json_object *v, const char *name) {
    json_object *field = NULL;
    json_object_object_get_ex(v, name, &field);
    return field;
}

static const char *text_of(json_object *v, const char *name) {
    json_object *field = get(v, name);
    return field ? json_object_get_string(field) : "";
}

static int number_of(json_object *v, const char *name, uint32_t *out, struct kn_err *err) {
    json_object *field = get(v, name);
    int64_t n = field ? json_object_get_int64(field) : 0;
    if (n < 0 || n > UINT32_MAX) return kn_err_set(err, KN_EPARSE, "%s: is out of range", name);
    *out = (uint32_t)n;
    return KN_OK;
}

/* The task that the line's settings say, for its key. Strings are borrowed from v. */
static int task_of(json_object *v, struct kn_task *t, struct kn_err *err) {
    memset(t, 0, sizeof *t);
    t->prompt = (char *)(uintptr_t)text_of(v, "prompt");
    t->negative = (char *)(uintptr_t)text_of(v, "negative");
    json_object *seed = get(v, "seed");
    if (json_object_get_int64(seed) < 0) return kn_err_set(err, KN_EPARSE, "seed: is out of range");
    t->seed = json_object_get_uint64(seed);
    int rc = kn_sampler_parse(text_of(v, "sampler"), &t->sampler, err);
    if (rc) return kn_err_prefix(err, "sampler");
    rc = kn_schedule_parse(text_of(v, "schedule"), &t->schedule, err);
    if (rc) return kn_err_prefix(err, "schedule");
    /* json-c keeps a number's own text: what was written for a float reads back as that float. */
    t->cfg = strtof(json_object_to_json_string(get(v, "cfg")), NULL);
    rc = number_of(v, "steps", &t->steps, err);
    if (rc == KN_OK) rc = number_of(v, "width", &t->width, err);
    if (rc == KN_OK) rc = number_of(v, "height", &t->height, err);
    if (rc) return rc;
    t->set = KN_SET_ALL;
    rc = kn_task_check(t, err);
    return rc;
}

static int read_object(json_object *v, struct manifest_line *out, struct kn_err *err) {
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        json_object *field;
        if (!json_object_object_get_ex(v, fields[i].name, &field))
            return kn_err_set(err, KN_EPARSE, "%s: is missing", fields[i].name);
        if (!fits(field, fields[i].kind))
            return kn_err_set(err, KN_EPARSE, "%s: is not %s", fields[i].name, kind_words(fields[i].kind));
    }
    const char *status = text_of(v, "status");
    if (strcmp(status, "done") == 0)
        out->status = KN_RESULT_DONE;
    else if (strcmp(status, "failed") == 0)
        out->status = KN_RESULT_FAILED;
    else if (strcmp(status, "cancelled") == 0)
        out->status = KN_RESULT_CANCELLED;
    else
        return kn_err_set(err, KN_EPARSE, "status: is none of done, failed, cancelled");
    int rc = number_of(v, "index", &out->index, err);
    if (rc == KN_OK && out->index >= KN_TASKS_PER_BATCH_MAX)
        rc = kn_err_set(err, KN_EPARSE, "index: is out of range");
    if (rc == KN_OK) rc = number_of(v, "attempt", &out->attempt, err);
    if (rc == KN_OK) rc = number_of(v, "render_ms", &out->render_ms, err);
    if (rc) return rc;
    struct kn_task t;
    rc = task_of(v, &t, err);
    if (rc) return rc;
    out->width = t.width;
    out->height = t.height;
    out->flat = json_object_get_boolean(get(v, "flat"));
    rc = kn_unhex(text_of(v, "model_sha256"), out->model_sha256, sizeof(kn_digest));
    if (rc == KN_OK) rc = kn_unhex(text_of(v, "key"), out->key, sizeof(kn_digest));
    assert(rc == KN_OK); /* fits() has read them */
    kn_task_key(&t, out->model_sha256, out->key_computed);

    const char *error = text_of(v, "error");
    if (out->status == KN_RESULT_FAILED && !error[0])
        return kn_err_set(err, KN_EPARSE, "error: failed without a reason");
    if (out->status != KN_RESULT_DONE) {
        if (get(v, "file")) return kn_err_set(err, KN_EPARSE, "file: an image that is %s has none", status);
        return KN_OK;
    }
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (fields[i].done && !get(v, fields[i].name))
            return kn_err_set(err, KN_EPARSE, "%s: is null, but the image is done", fields[i].name);
    if (!folder_file_is_safe(text_of(v, "file")))
        return kn_err_set(err, KN_EPARSE, "file: is not a picture's name in images/");
    out->file = strdup(text_of(v, "file"));
    if (!out->file) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    rc = kn_unhex(text_of(v, "sha256"), out->sha256, sizeof(kn_digest));
    if (rc == KN_OK) rc = kn_unhex(text_of(v, "pixels_sha256"), out->pixels_sha256, sizeof(kn_digest));
    assert(rc == KN_OK);
    return KN_OK;
}

int manifest_read(const char *text, size_t len, struct manifest_line *out, struct kn_err *err) {
    memset(out, 0, sizeof *out);
    json_object *v = manifest_parse(text, len, 32);
    int rc = json_object_is_type(v, json_type_object) ? read_object(v, out, err)
                                                      : kn_err_set(err, KN_EPARSE, "is not a JSON object");
    json_object_put(v);
    return rc;
}
