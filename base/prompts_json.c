/* The readers of .jsonl, an object a line, and of .json, an array of objects or of strings; the contract
 * is record.h. json-c decodes strings with escapes and validates values that are kept as they stand:
 * `extra`, and what has a name that kiln does not know, which joins it. */
#include "base/json.h"
#include "base/record.h"

#include <ctype.h>
#include <json-c/json.h>
#include <string.h>

#define JSON_DEPTH_MAX 16

static bool json_blank(char c) {
    return c == ' ' || c == '\t' || c == '\n';
}

static int hex4(const char *p) {
    int v = 0;
    for (int i = 0; i < 4; i++) {
        if (!isxdigit((unsigned char)p[i])) return -1;
        v = v * 16 + (isdigit((unsigned char)p[i]) ? p[i] - '0' : (p[i] | 0x20) - 'a' + 10);
    }
    return v;
}

const char *kn_json_string_end(const char *p, const char *end, const char **why) {
    for (p++; p < end && *p != '"'; p++) {
        *why = "a control character in a string";
        if ((unsigned char)*p < 0x20) return NULL;
        if (*p != '\\') continue;
        *why = "an unknown escape in a string";
        if (++p == end || !strchr("\"\\/bfnrtu", *p)) return NULL;
        if (*p != 'u') continue;
        int unit = end - p > 4 ? hex4(p + 1) : -1;
        if (unit < 0) return NULL;
        *why = "a NUL in a string";
        if (unit == 0) return NULL;
        p += 4;
        *why = "half a surrogate pair in a string";
        if (unit >= 0xdc00 && unit <= 0xdfff) return NULL;
        if (unit < 0xd800 || unit > 0xdbff) continue;
        int low = end - p > 6 && p[1] == '\\' && p[2] == 'u' ? hex4(p + 3) : -1;
        if (low < 0xdc00 || low > 0xdfff) return NULL;
        p += 6;
    }
    *why = "a string does not end";
    return p < end ? p + 1 : NULL;
}

static json_object *json_parse(const char *p, size_t len) {
    size_t used;
    json_object *o = kn_json_parse(p, len, JSON_DEPTH_MAX, &used, NULL);
    if (used == len) return o;
    json_object_put(o);
    return NULL;
}

int kn_json_text(const struct kn_reader *r, const char *p, const char *end, struct kn_buf *out) {
    int rc;
    kn_buf_clear(out);
    if (!memchr(p, '\\', (size_t)(end - p))) {
        rc = kn_buf_append(out, p + 1, (size_t)(end - p) - 2);
    } else {
        json_object *s = json_parse(p, (size_t)(end - p));
        if (!s) return kn_record_fail(r, KN_EPARSE, "a malformed string");
        rc = kn_buf_append(out, json_object_get_string(s), (size_t)json_object_get_string_len(s));
        json_object_put(s);
    }
    return rc ? kn_record_fail(r, rc, "%s", kn_err_words(rc)) : KN_OK;
}

const char *kn_json_nest_end(const char *p, const char *end, const char **why) {
    size_t depth = 0;
    while (p < end) {
        if (*p == '"') {
            p = kn_json_string_end(p, end, why);
            if (!p) return NULL;
            continue;
        }
        *why = "NaN and Infinity are not JSON";
        if (*p == 'N' || *p == 'I') return NULL;
        if (*p == '{' || *p == '[') depth++;
        if ((*p == '}' || *p == ']') && --depth == 0) return p + 1;
        p++;
    }
    *why = "a bracket is not closed";
    return NULL;
}

/* While an object is read. */
struct json {
    struct kn_reader *r;
    struct kn_record rec;
    const char *counted;      /* r->line is the line of this place */
    struct kn_buf key, text;  /* scratch */
    struct kn_buf extra;      /* the object given as `extra`, as it stands; empty: none */
    struct kn_buf others;     /* "name":value,… of the names that kiln does not know, as they stand */
    json_object *other_names; /* these names, as the keys of an object */
};

static void json_init(struct json *j, struct kn_reader *r, const char *p) {
    *j = (struct json){.r = r, .counted = p};
    kn_buf_init(&j->key, KN_INPUT_BYTES_MAX);
    kn_buf_init(&j->text, KN_INPUT_BYTES_MAX);
    kn_buf_init(&j->extra, KN_INPUT_BYTES_MAX);
    kn_buf_init(&j->others, KN_INPUT_BYTES_MAX);
}

static void json_fini(struct json *j) {
    kn_buf_fini(&j->key);
    kn_buf_fini(&j->text);
    kn_buf_fini(&j->extra);
    kn_buf_fini(&j->others);
    json_object_put(j->other_names);
}

/* Moves r->line on to that of p. */
static void count_lines(struct json *j, const char *p) {
    while ((j->counted = memchr(j->counted, '\n', (size_t)(p - j->counted)))) {
        j->counted++;
        j->r->line++;
    }
    j->counted = p;
}

static const char *skip_blanks(struct json *j, const char *p, const char *end) {
    while (p < end && json_blank(*p)) p++;
    count_lines(j, p);
    return p;
}

static int fail_key(const struct json *j, const char *what) {
    return kn_record_fail(j->r, KN_EPARSE, "%.*s: %s", kn_record_shown(j->key.data), j->key.data, what);
}

static int put(const struct json *j, struct kn_buf *out, const char *p, size_t len) {
    int rc = kn_buf_append(out, p, len);
    return rc ? kn_record_fail(j->r, rc, "%s", kn_err_words(rc)) : KN_OK;
}

/* Behind the bracketed value at *at, whose inside json-c has validated. */
static int json_nest(const struct json *j, const char **at, const char *end) {
    const char *why, *stop = kn_json_nest_end(*at, end, &why);
    if (!stop) return fail_key(j, why);
    json_object *o = json_parse(*at, (size_t)(stop - *at));
    if (!o)
        return kn_record_fail(j->r, KN_EPARSE, "%.*s: malformed JSON, or nested deeper than %d",
                              kn_record_shown(j->key.data), j->key.data, JSON_DEPTH_MAX);
    json_object_put(o);
    *at = stop;
    return KN_OK;
}

static size_t word_len(const char *p, const char *end) {
    static const char *const words[] = {"null", "true", "false"};
    for (size_t i = 0; i < 3; i++) {
        size_t n = strlen(words[i]);
        if ((size_t)(end - p) >= n && memcmp(p, words[i], n) == 0) return n;
    }
    return 0;
}

/* Names the kind of value at p, where another was wanted. */
static int fail_value(const struct json *j, const char *p, const char *end, const char *wanted) {
    size_t n = 0;
    while (p + n < end && n < KN_SHOWN_MAX && !strchr(",}] \t\n", p[n])) n++;
    return kn_record_fail(j->r, KN_EPARSE, "%.*s: %.*s is not %s", kn_record_shown(j->key.data), j->key.data,
                          (int)n, p, wanted);
}

/* One value, from *at on: sets the field, and *at behind the value. */
static int json_value(struct json *j, enum kn_record_field field, const char **at, const char *end) {
    static const uint32_t number_bits = 1u << KN_IN_SEED | 1u << KN_IN_STEPS | 1u << KN_IN_CFG |
                                        1u << KN_IN_WIDTH | 1u << KN_IN_HEIGHT | 1u << KN_IN_IMAGES |
                                        1u << KN_IN_N_ITER | 1u << KN_IN_BATCH_SIZE;
    const char *p = *at, *why = NULL, *stop = p, *name = j->key.data;
    bool number = number_bits >> field & 1;
    const char *wanted = field == KN_IN_EXTRA ? "an object" : number ? "a number" : "a string";
    int rc;

    if (*p == '"') {
        stop = kn_json_string_end(p, end, &why);
        if (!stop) return fail_key(j, why);
        rc = kn_json_text(j->r, p, stop, &j->text);
        if (rc) return rc;
        bool each = field == KN_IN_SEED && strcmp(j->text.data, "each") == 0;
        if ((number && !each) || field == KN_IN_EXTRA)
            return kn_record_fail(j->r, KN_EPARSE, "%s: \"%.*s\" is a string, not %s", name,
                                  kn_record_shown(j->text.data), j->text.data, wanted);
    } else if (*p == '{' || *p == '[') {
        if (field != KN_IN_EXTRA || *p != '{') {
            if (!kn_json_nest_end(p, end, &why)) return fail_key(j, why);
            return kn_record_fail(j->r, KN_EPARSE, "%s: is not %s", name, wanted);
        }
        rc = json_nest(j, &stop, end);
        if (rc == KN_OK) rc = kn_record_give(j->r, &j->rec, field, name);
        if (rc == KN_OK) rc = put(j, &j->extra, p, (size_t)(stop - p));
        *at = stop;
        return rc;
    } else if (*p == 'n' && word_len(p, end) > 0) {
        *at = p + 4; /* as if the key were not there; but not twice */
        return kn_record_give(j->r, &j->rec, field, name);
    } else {
        size_t len = kn_number_span(p, (size_t)(end - p));
        if (len == 0 || !number) return fail_value(j, p, end, wanted);
        stop = p + len;
        kn_buf_clear(&j->text);
        rc = put(j, &j->text, p, len);
        if (rc) return rc;
    }
    *at = stop;
    return kn_record_set(j->r, &j->rec, field, name, j->text.data);
}

/* A pair whose name kiln does not know; [key, key_end) is the name as it stands. Its value may be any, and
 * is kept as it stands: a library would round its numbers. */
static int json_other(struct json *j, const char *key, const char *key_end, const char **at,
                      const char *end) {
    const char *p = *at, *why = NULL, *stop = p;
    int rc = kn_record_check_unknown(j->r, j->key.data);
    if (rc) return rc;
    if (!j->other_names) j->other_names = json_object_new_object();
    if (!j->other_names) return kn_record_no_memory(j->r);
    if (json_object_object_get_ex(j->other_names, j->key.data, NULL)) return fail_key(j, "given twice");
    if (json_object_object_add(j->other_names, j->key.data, NULL) != 0) return kn_record_no_memory(j->r);
    if (*p == '"') {
        stop = kn_json_string_end(p, end, &why);
        if (!stop) return fail_key(j, why);
    } else if (*p == '{' || *p == '[') {
        rc = json_nest(j, &stop, end);
        if (rc) return rc;
    } else {
        size_t len = word_len(p, end);
        if (len == 0) len = kn_number_span(p, (size_t)(end - p));
        if (len == 0) return fail_value(j, p, end, "a value of JSON");
        stop = p + len;
    }
    if (j->others.len > 0) rc = put(j, &j->others, ",", 1);
    if (rc == KN_OK) rc = put(j, &j->others, key, (size_t)(key_end - key));
    if (rc == KN_OK) rc = put(j, &j->others, ":", 1);
    if (rc == KN_OK) rc = put(j, &j->others, p, (size_t)(stop - p));
    *at = stop;
    return rc;
}

/* The record's `extra`: the object of that name, and behind its pairs those of unknown names. */
static int json_extra(struct json *j) {
    struct kn_buf *e = &j->extra;
    if (j->others.len == 0) return e->len == 0 ? KN_OK : kn_record_set_extra(j->r, &j->rec, e->data);
    bool pairs = false; /* in the object */
    if (e->len > 0) {
        json_object *o = json_parse(e->data, e->len);
        if (!o) return kn_record_no_memory(j->r); /* it was parsed before */
        pairs = json_object_object_length(o) > 0;
        const char *twice = NULL;
        json_object_object_foreach(j->other_names, name, ignored) {
            (void)ignored;
            if (json_object_object_get_ex(o, name, NULL)) twice = name;
        }
        json_object_put(o);
        if (twice)
            return kn_record_fail(j->r, KN_EPARSE, "%.*s: given twice, in extra too", kn_record_shown(twice),
                                  twice);
        e->len--; /* its closing brace */
    }
    int rc = e->len > 0 ? KN_OK : put(j, e, "{", 1);
    if (rc == KN_OK && pairs) rc = put(j, e, ",", 1);
    if (rc == KN_OK) rc = put(j, e, j->others.data, j->others.len);
    if (rc == KN_OK) rc = put(j, e, "}", 1);
    return rc ? rc : kn_record_set_extra(j->r, &j->rec, e->data);
}

/* The pairs of the object at *at, up to behind its closing brace. */
static int json_pairs(struct json *j, const char **at, const char *end) {
    const char *why = NULL, *p = *at + 1;
    for (bool first = true;; first = false) {
        p = skip_blanks(j, p, end);
        if (first && p < end && *p == '}') break;
        if (p == end || *p != '"') return kn_record_fail(j->r, KN_EPARSE, "a key in quotes is missing");
        const char *key = p, *key_end = kn_json_string_end(p, end, &why);
        if (!key_end) return kn_record_fail(j->r, KN_EPARSE, "%s", why);
        int rc = kn_json_text(j->r, p, key_end, &j->key);
        if (rc) return rc;
        p = skip_blanks(j, key_end, end);
        if (p == end || *p != ':') return fail_key(j, "a colon is missing");
        p = skip_blanks(j, p + 1, end);
        if (p == end) return fail_key(j, "a value is missing");

        char folded[KN_NAME_MAX + 1];
        enum kn_record_field field = KN_IN_UNKNOWN;
        if (kn_record_fold(j->key.data, folded))
            field = strcmp(folded, "extra") == 0 ? KN_IN_EXTRA : kn_record_field(folded);
        if (field == KN_IN_UNSUPPORTED) return kn_record_fail_unsupported(j->r, j->key.data);
        rc = field == KN_IN_UNKNOWN ? json_other(j, key, key_end, &p, end) : json_value(j, field, &p, end);
        if (rc) return rc;

        p = skip_blanks(j, p, end);
        if (p < end && *p == '}') break;
        if (p == end || *p != ',') return fail_key(j, "a comma or a closing brace is missing after it");
        p++;
    }
    *at = p + 1;
    return KN_OK;
}

/* The object, or where `strings` the string, that begins at *at: appends its tasks. r->line is the line
 * where it begins, in the record as well; after success it is the line of *at again. */
static int json_item(struct json *j, const char **at, const char *end, bool strings) {
    size_t line = j->r->line;
    int rc = kn_record_init(j->r, &j->rec);
    if (rc) return rc;
    kn_buf_clear(&j->extra);
    kn_buf_clear(&j->others);
    json_object_put(j->other_names);
    j->other_names = NULL;
    if (**at == '{') {
        rc = json_pairs(j, at, end);
        if (rc == KN_OK) rc = json_extra(j);
    } else if (**at == '"' && strings) {
        kn_buf_clear(&j->key);
        rc = kn_buf_appends(&j->key, "prompt");
        if (rc)
            kn_record_fail(j->r, rc, "%s", kn_err_words(rc));
        else
            rc = json_value(j, KN_IN_PROMPT, at, end);
    } else {
        rc = kn_record_fail(j->r, KN_EPARSE,
                            strings ? "is neither an object nor a string" : "a line holds one JSON object");
    }
    if (rc) {
        kn_task_fini(&j->rec.t);
        return rc;
    }
    size_t behind = j->r->line;
    j->r->line = line;
    rc = kn_record_finish(j->r, &j->rec);
    if (rc == KN_OK) j->r->line = behind;
    return rc;
}

int kn_jsonl_read(struct kn_reader *r, const char *p, const char *end) {
    struct json j;
    json_init(&j, r, p);
    int rc = KN_OK;
    for (r->line = 1; rc == KN_OK && p < end; r->line++) {
        const char *newline = memchr(p, '\n', (size_t)(end - p));
        const char *stop = newline ? newline : end, *next = newline ? newline + 1 : end;
        while (stop - p >= 3 && memcmp(p, "\xef\xbb\xbf", 3) == 0)
            p += 3; /* of joined files that begin with it */
        j.counted = p;
        p = skip_blanks(&j, p, stop);
        if (p < stop) {
            rc = json_item(&j, &p, stop, false);
            if (rc == KN_OK && skip_blanks(&j, p, stop) < stop)
                rc = kn_record_fail(r, KN_EPARSE, "something follows the JSON object");
        }
        p = next;
        if (rc) break;
    }
    json_fini(&j);
    return rc;
}

/* The elements of the array whose bracket is at p. */
static int json_elements(struct json *j, const char *p, const char *end) {
    struct kn_reader *r = j->r;
    p = skip_blanks(j, p + 1, end);
    for (bool more = p == end || *p != ']'; more;) {
        r->element++;
        if (p == end || *p == ']') return kn_record_fail(r, KN_EPARSE, "is missing, or the closing ] is");
        int rc = json_item(j, &p, end, true);
        if (rc) return rc;
        p = skip_blanks(j, p, end);
        if (p == end || (*p != ',' && *p != ']'))
            return kn_record_fail(r, KN_EPARSE, "a comma or the closing ] is missing after it");
        more = *p == ',';
        if (more) p = skip_blanks(j, p + 1, end);
    }
    r->element = 0;
    return skip_blanks(j, p + 1, end) == end
               ? KN_OK
               : kn_record_fail(r, KN_EPARSE, "something follows the JSON array");
}

int kn_json_read(struct kn_reader *r, const char *p, const char *end) {
    struct json j;
    r->line = 1;
    json_init(&j, r, p);
    p = skip_blanks(&j, p, end);
    int rc = KN_OK;
    if (p < end && *p == '[')
        rc = json_elements(&j, p, end);
    else if (p < end)
        rc = kn_record_fail(
            r, KN_EPARSE,
            "a .json is an array of objects or of strings, [ … ]; an object a line is a .jsonl, and "
            "--input-format jsonl says so");
    json_fini(&j);
    return rc;
}
