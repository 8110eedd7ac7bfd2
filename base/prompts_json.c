/* The reader of .jsonl: an object a line; the contract is record.h. json-c decodes strings with escapes and
 * validates `extra`. */
#include "base/record.h"

#include <ctype.h>
#include <json-c/json.h>
#include <string.h>

#define JSON_DEPTH_MAX 16

static bool json_blank(char c) {
    return c == ' ' || c == '\t';
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
    struct json_tokener *tok = json_tokener_new_ex(JSON_DEPTH_MAX);
    if (!tok) return NULL;
    json_tokener_set_flags(tok, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
    json_object *o = json_tokener_parse_ex(tok, p, (int)len);
    if (json_tokener_get_error(tok) != json_tokener_success || json_tokener_get_parse_end(tok) != len) {
        json_object_put(o);
        o = NULL;
    }
    json_tokener_free(tok);
    return o;
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

/* One value, from p on: sets the field, and *at behind the value. */
static int json_value(const struct kn_reader *r, struct kn_record *rec, enum kn_record_field field,
                      const char *name, const char **at, const char *end, struct kn_buf *text) {
    static const uint32_t number_bits = 1u << KN_IN_SEED | 1u << KN_IN_STEPS | 1u << KN_IN_CFG |
                                        1u << KN_IN_WIDTH | 1u << KN_IN_HEIGHT | 1u << KN_IN_IMAGES |
                                        1u << KN_IN_N_ITER | 1u << KN_IN_BATCH_SIZE;
    const char *p = *at, *why = NULL, *stop;
    bool number = number_bits >> field & 1;
    const char *wanted = field == KN_IN_EXTRA ? "an object" : number ? "a number" : "a string";
    int rc;

    if (*p == '"') {
        stop = kn_json_string_end(p, end, &why);
        if (!stop) return kn_record_fail(r, KN_EPARSE, "%s: %s", name, why);
        rc = kn_json_text(r, p, stop, text);
        if (rc) return rc;
        if (number || field == KN_IN_EXTRA)
            return kn_record_fail(r, KN_EPARSE, "%s: \"%.*s\" is a string, not %s", name,
                                  kn_record_shown(text->data), text->data, wanted);
    } else if (*p == '{' || *p == '[') {
        stop = kn_json_nest_end(p, end, &why);
        if (!stop) return kn_record_fail(r, KN_EPARSE, "%s: %s", name, why);
        if (field != KN_IN_EXTRA || *p != '{')
            return kn_record_fail(r, KN_EPARSE, "%s: is not %s", name, wanted);
        json_object *o = json_parse(p, (size_t)(stop - p));
        if (!o)
            return kn_record_fail(r, KN_EPARSE, "%s: malformed JSON, or nested deeper than %d", name,
                                  JSON_DEPTH_MAX);
        json_object_put(o);
        kn_buf_clear(text);
        rc = kn_buf_append(text, p, (size_t)(stop - p));
        if (rc) return kn_record_fail(r, rc, "%s: %s", name, kn_err_words(rc));
    } else if (end - p >= 4 && memcmp(p, "null", 4) == 0) {
        *at = p + 4; /* as if the key were not there; but not twice */
        return kn_record_give(r, rec, field, name);
    } else {
        size_t len = kn_number_span(p, (size_t)(end - p));
        if (len == 0 || !number) {
            size_t n = 0;
            while (p + n < end && n < KN_SHOWN_MAX && !strchr(",}] \t", p[n])) n++;
            return kn_record_fail(r, KN_EPARSE, "%s: %.*s is not %s", name, (int)n, p, wanted);
        }
        stop = p + len;
        kn_buf_clear(text);
        rc = kn_buf_append(text, p, len);
        if (rc) return kn_record_fail(r, rc, "%s: %s", name, kn_err_words(rc));
    }
    *at = stop;
    return kn_record_set(r, rec, field, name, text->data);
}

static int json_pairs(const struct kn_reader *r, struct kn_record *rec, const char *p, const char *end,
                      struct kn_buf *key, struct kn_buf *text) {
    const char *why = NULL;
    if (*p != '{') return kn_record_fail(r, KN_EPARSE, "a line holds one JSON object");
    p++;
    for (bool first = true;; first = false) {
        while (p < end && json_blank(*p)) p++;
        if (first && p < end && *p == '}') break;
        if (p == end || *p != '"') return kn_record_fail(r, KN_EPARSE, "a key in quotes is missing");
        const char *key_end = kn_json_string_end(p, end, &why);
        if (!key_end) return kn_record_fail(r, KN_EPARSE, "%s", why);
        int rc = kn_json_text(r, p, key_end, key);
        if (rc) return rc;
        p = key_end;
        while (p < end && json_blank(*p)) p++;
        if (p == end || *p != ':')
            return kn_record_fail(r, KN_EPARSE, "%.*s: a colon is missing", kn_record_shown(key->data),
                                  key->data);
        p++;
        while (p < end && json_blank(*p)) p++;
        if (p == end)
            return kn_record_fail(r, KN_EPARSE, "%.*s: a value is missing", kn_record_shown(key->data),
                                  key->data);

        enum kn_record_field field =
            strcmp(key->data, "extra") == 0 ? KN_IN_EXTRA : kn_record_field(key->data);
        if (field == KN_IN_UNKNOWN) return kn_record_fail_unknown(r, key->data);
        if (field == KN_IN_UNSUPPORTED) return kn_record_fail_unsupported(r, key->data);
        rc = json_value(r, rec, field, key->data, &p, end, text);
        if (rc) return rc;

        while (p < end && json_blank(*p)) p++;
        if (p < end && *p == '}') break;
        if (p == end || *p != ',')
            return kn_record_fail(r, KN_EPARSE, "%.*s: a comma or a closing brace is missing after it",
                                  kn_record_shown(key->data), key->data);
        p++;
    }
    for (p++; p < end; p++) {
        if (!json_blank(*p)) return kn_record_fail(r, KN_EPARSE, "something follows the JSON object");
    }
    return KN_OK;
}

int kn_jsonl_read(struct kn_reader *r, const char *p, const char *end) {
    struct kn_buf key, text;
    kn_buf_init(&key, KN_INPUT_BYTES_MAX);
    kn_buf_init(&text, KN_INPUT_BYTES_MAX);
    int rc = KN_OK;
    for (r->line = 1; rc == KN_OK && p < end; r->line++) {
        const char *newline = memchr(p, '\n', (size_t)(end - p));
        const char *stop = newline ? newline : end, *next = newline ? newline + 1 : end;
        while (stop - p >= 3 && memcmp(p, "\xef\xbb\xbf", 3) == 0)
            p += 3; /* files that begin with it, joined */
        while (p < stop && json_blank(*p)) p++;
        if (p < stop) {
            struct kn_record rec;
            rc = kn_record_init(r, &rec);
            if (rc == KN_OK) rc = json_pairs(r, &rec, p, stop, &key, &text);
            if (rc == KN_OK)
                rc = kn_record_finish(r, &rec);
            else
                kn_task_fini(&rec.t);
        }
        p = next;
    }
    kn_buf_fini(&key);
    kn_buf_fini(&text);
    return rc;
}
