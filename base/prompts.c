/* The reader of prompt files; the contract is prompts.h. A reader a format cuts the input into records and
 * pairs; record.h takes them from there. json-c decodes strings with escapes, validates `extra` and writes it
 * for .csv.
 *
 * Invariant: while a record is read, `line` is where it begins. */
#include "base/prompts.h"

#include <assert.h>
#include <ctype.h>
#include <json-c/json.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "base/record.h"
#include "base/utf8.h"

#define NAME_SHOWN_MAX 200 /* bytes of the file's name in a message: its end */
#define CSV_COLUMNS_MAX 256
#define CSV_QUOTED_MAX (4 * KN_PROMPT_BYTES_MAX) /* a quoted field of a .tsv ends within so many bytes */
#define JSON_DEPTH_MAX 16

/* --- .txt --- */

static bool is_blank(char c) {
    return c == ' ' || c == '\t' || c == '\r' || c == '\v' || c == '\f';
}

static bool option_begins(const char *p, const char *end) {
    return end - p > 2 && p[0] == '-' && p[1] == '-' && isalpha((unsigned char)p[2]);
}

/* One word as a shell would split it: '…' is literal; in "…" a backslash escapes '"' and '\'; elsewhere it
 * escapes any character. */
static int word_next(const struct kn_reader *r, const char **at, const char *end, struct kn_buf *out) {
    const char *p = *at;
    char in = 0;
    kn_buf_clear(out);
    int rc = kn_buf_append(out, "", 0); /* an empty word is a text too */
    for (; rc == KN_OK && p < end; p++) {
        if (in == 0 && is_blank(*p)) break;
        if (in == 0 && (*p == '"' || *p == '\'')) {
            in = *p;
        } else if (in != 0 && *p == in) {
            in = 0;
        } else if (*p == '\\' && in != '\'' && p + 1 < end && (in == 0 || p[1] == '"' || p[1] == '\\')) {
            rc = kn_buf_append(out, ++p, 1);
        } else {
            rc = kn_buf_append(out, p, 1);
        }
    }
    if (rc) return kn_record_fail(r, rc, "%s", kn_err_words(rc));
    if (in != 0) return kn_record_fail(r, KN_EPARSE, "a quote (%c) is not closed", in);
    *at = p;
    return KN_OK;
}

/* The options of a line, from its first "--" on. `word` and `value` are the caller's scratch. */
static int txt_options(const struct kn_reader *r, struct kn_record *rec, const char *p, const char *end,
                       struct kn_buf *word, struct kn_buf *value) {
    int rc = KN_OK;
    for (;;) {
        while (p < end && is_blank(*p)) p++;
        if (p == end) return KN_OK;
        bool option = option_begins(p, end);
        rc = word_next(r, &p, end, word);
        if (rc) return rc;
        if (!option)
            return kn_record_fail(
                r, KN_EPARSE, "\"%.*s\" belongs to no option; put quotes around a value that holds blanks",
                kn_record_shown(word->data), word->data);
        char *name = word->data + 2, folded[KN_NAME_MAX + 1];
        char *equals = strchr(name, '=');
        if (equals) *equals = '\0';
        enum kn_record_field field = kn_record_fold(name, folded) ? kn_record_field(folded) : KN_IN_UNKNOWN;
        if (field == KN_IN_UNKNOWN) return kn_record_fail_unknown(r, name);
        if (field == KN_IN_UNSUPPORTED) return kn_record_fail_unsupported(r, name);

        kn_buf_clear(value);
        rc = kn_buf_appends(value, equals ? equals + 1 : "");
        if (rc) return kn_record_fail(r, rc, "%s", kn_err_words(rc));
        bool any = equals != NULL;
        /* A prompt need not be quoted, as in A1111: it goes on to the next option. */
        bool many = field == KN_IN_PROMPT || field == KN_IN_NEGATIVE;
        char kept[KN_NAME_MAX + 1];
        snprintf(kept, sizeof kept, "%s", name); /* word is needed for the values */
        while (!any || many) {
            while (p < end && is_blank(*p)) p++;
            if (p == end || option_begins(p, end)) break;
            rc = word_next(r, &p, end, word);
            if (rc) return rc;
            if (any) rc = kn_buf_appends(value, " ");
            if (rc == KN_OK) rc = kn_buf_append(value, word->data, word->len);
            if (rc) return kn_record_fail(r, rc, "%s", kn_err_words(rc));
            any = true;
        }
        if (!any) return kn_record_fail(r, KN_EPARSE, "%s: needs a value", kept);
        rc = kn_record_set(r, rec, field, kept, value->data);
        if (rc) return rc;
    }
}

static int txt_line(const struct kn_reader *r, const char *p, const char *end, struct kn_buf *word,
                    struct kn_buf *value) {
    struct kn_record rec;
    int rc = kn_record_init(r, &rec);
    if (rc) return rc;
    const char *options = p;
    while (options < end && !(option_begins(options, end) && (options == p || is_blank(options[-1]))))
        options++;
    const char *text_end = options;
    while (text_end > p && is_blank(text_end[-1])) text_end--;
    if (text_end > p) {
        kn_buf_clear(value);
        rc = kn_buf_append(value, p, (size_t)(text_end - p));
        if (rc)
            kn_record_fail(r, rc, "prompt: %s", kn_err_words(rc));
        else
            rc = kn_record_set(r, &rec, KN_IN_PROMPT, "prompt", value->data);
    }
    if (rc == KN_OK) rc = txt_options(r, &rec, options, end, word, value);
    if (rc) {
        kn_task_fini(&rec.t);
        return rc;
    }
    return kn_record_finish(r, &rec);
}

static int txt_read(struct kn_reader *r, const char *p, const char *end) {
    struct kn_buf word, value;
    kn_buf_init(&word, KN_INPUT_BYTES_MAX);
    kn_buf_init(&value, KN_INPUT_BYTES_MAX);
    int rc = KN_OK;
    for (r->line = 1; rc == KN_OK && p < end; r->line++) {
        const char *newline = memchr(p, '\n', (size_t)(end - p));
        const char *stop = newline ? newline : end, *next = newline ? newline + 1 : end;
        while (p < stop && is_blank(*p)) p++;
        while (stop > p && is_blank(stop[-1])) stop--;
        if (p < stop && *p != '#') rc = txt_line(r, p, stop, &word, &value);
        p = next;
    }
    kn_buf_fini(&word);
    kn_buf_fini(&value);
    return rc;
}

/* --- .jsonl --- */

static bool json_blank(char c) {
    return c == ' ' || c == '\t' || c == '\r';
}

static int hex4(const char *p) {
    int v = 0;
    for (int i = 0; i < 4; i++) {
        if (!isxdigit((unsigned char)p[i])) return -1;
        v = v * 16 + (isdigit((unsigned char)p[i]) ? p[i] - '0' : (p[i] | 0x20) - 'a' + 10);
    }
    return v;
}

/* From the opening quote of a string to behind the closing one; NULL and *why when it is none. Stricter than
 * json-c: raw control characters, half surrogates and \u0000 are errors. */
static const char *json_string_end(const char *p, const char *end, const char **why) {
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

/* The text of the string [p, end), quotes included, which json_string_end() has accepted. */
static int json_text(const struct kn_reader *r, const char *p, const char *end, struct kn_buf *out) {
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

/* From a bracket to behind the one that closes it. What is between is checked by json-c; but that takes NaN
 * and Infinity, whose capitals nothing else outside a string begins with. */
static const char *json_nest_end(const char *p, const char *end, const char **why) {
    size_t depth = 0;
    while (p < end) {
        if (*p == '"') {
            p = json_string_end(p, end, why);
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
        stop = json_string_end(p, end, &why);
        if (!stop) return kn_record_fail(r, KN_EPARSE, "%s: %s", name, why);
        rc = json_text(r, p, stop, text);
        if (rc) return rc;
        if (number || field == KN_IN_EXTRA)
            return kn_record_fail(r, KN_EPARSE, "%s: \"%.*s\" is a string, not %s", name,
                                  kn_record_shown(text->data), text->data, wanted);
    } else if (*p == '{' || *p == '[') {
        stop = json_nest_end(p, end, &why);
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
            while (p + n < end && n < KN_SHOWN_MAX && !strchr(",}] \t\r", p[n])) n++;
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
        const char *key_end = json_string_end(p, end, &why);
        if (!key_end) return kn_record_fail(r, KN_EPARSE, "%s", why);
        int rc = json_text(r, p, key_end, key);
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

static int jsonl_read(struct kn_reader *r, const char *p, const char *end) {
    struct kn_buf key, text;
    kn_buf_init(&key, KN_INPUT_BYTES_MAX);
    kn_buf_init(&text, KN_INPUT_BYTES_MAX);
    int rc = KN_OK;
    for (r->line = 1; rc == KN_OK && p < end; r->line++) {
        const char *newline = memchr(p, '\n', (size_t)(end - p));
        const char *stop = newline ? newline : end, *next = newline ? newline + 1 : end;
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

/* --- .csv and .tsv (RFC 4180) --- */

struct csv {
    char separator;
    const char *p, *end;
    size_t next_line;           /* of p */
    struct kn_buf cells;        /* the record's cells, each ended by a 0 */
    size_t at[CSV_COLUMNS_MAX]; /* where each begins */
    size_t count;
};

/* Whether the field at c->p, which begins with a quote, is a quoted one. In .csv always (or it is a mistake);
 * many a .tsv is written without any quoting ("G I G G L E" painted on a wall): there the closing quote must
 * end the field. */
static bool csv_quoted(const struct csv *c) {
    if (c->separator == ',') return true;
    const char *end = c->end - c->p > CSV_QUOTED_MAX ? c->p + CSV_QUOTED_MAX : c->end;
    for (const char *p = c->p + 1; p < end; p++) {
        if (*p != '"') continue;
        if (p + 1 == c->end || p[1] == c->separator || p[1] == '\n' || p[1] == '\r') return true;
        if (p[1] != '"') return false;
        p++;
    }
    return false;
}

/* Reads one record. r->line becomes the line where it begins. count 0: an empty line. */
static int csv_record(struct kn_reader *r, struct csv *c) {
    r->line = c->next_line;
    c->count = 0;
    kn_buf_clear(&c->cells);
    bool any = false; /* a separator, a quote or a character was seen */
    for (;;) {
        if (c->count == CSV_COLUMNS_MAX)
            return kn_record_fail(r, KN_ELIMIT, "more than %d columns", CSV_COLUMNS_MAX);
        c->at[c->count++] = c->cells.len;
        int rc = KN_OK;
        if (c->p < c->end && *c->p == '"' && csv_quoted(c)) {
            any = true;
            for (c->p++;; c->p++) {
                if (c->p == c->end)
                    return kn_record_fail(r, KN_EPARSE, "a quoted field does not end (column %zu)", c->count);
                if (*c->p == '"') {
                    if (c->end - c->p > 1 && c->p[1] == '"')
                        c->p++;
                    else
                        break;
                }
                if (*c->p == '\n') c->next_line++;
                rc = kn_buf_append(&c->cells, c->p, 1);
                if (rc) return kn_record_fail(r, rc, "%s", kn_err_words(rc));
            }
            c->p++;
        } else {
            const char *from = c->p;
            while (c->p < c->end && *c->p != c->separator && *c->p != '\n' &&
                   !(*c->p == '\r' && (c->end - c->p == 1 || c->p[1] == '\n'))) {
                if (*c->p == '"' && c->separator == ',')
                    return kn_record_fail(r, KN_EPARSE,
                                          "a quote inside a field that does not begin with one (column %zu)",
                                          c->count);
                c->p++;
            }
            if (c->p > from) any = true;
            rc = kn_buf_append(&c->cells, from, (size_t)(c->p - from));
        }
        if (rc == KN_OK) rc = kn_buf_append(&c->cells, "", 1);
        if (rc) return kn_record_fail(r, rc, "%s", kn_err_words(rc));
        if (c->p < c->end && *c->p == c->separator) {
            any = true;
            c->p++;
            continue;
        }
        if (c->p < c->end && *c->p == '\r' && (c->end - c->p == 1 || c->p[1] == '\n')) c->p++;
        if (c->p == c->end) break;
        if (*c->p != '\n')
            return kn_record_fail(r, KN_EPARSE, "something follows a quoted field (column %zu)", c->count);
        c->p++;
        c->next_line++;
        break;
    }
    if (!any) c->count = 0;
    return KN_OK;
}

static char *trim(char *s) {
    while (is_blank(*s) || *s == '\n') s++;
    size_t len = strlen(s);
    while (len > 0 && (is_blank(s[len - 1]) || s[len - 1] == '\n')) len--;
    s[len] = '\0';
    return s;
}

struct csv_header {
    size_t count;
    enum kn_record_field field[CSV_COLUMNS_MAX];
    char *name[CSV_COLUMNS_MAX]; /* owns; as the file spells it */
};

static int csv_header_read(const struct kn_reader *r, const struct csv *c, struct csv_header *h) {
    bool prompt = false;
    for (size_t i = 0; i < c->count; i++) {
        char folded[KN_NAME_MAX + 1], *name = trim(c->cells.data + c->at[i]);
        if (name[0] == '\0') return kn_record_fail(r, KN_EPARSE, "column %zu has no name", i + 1);
        if (!kn_record_fold(name, folded))
            return kn_record_fail(r, KN_ELIMIT, "%.*s…: a column's name is longer than %d bytes",
                                  kn_record_shown(name), name, KN_NAME_MAX);
        h->field[i] = kn_record_field(folded);
        if (h->field[i] == KN_IN_UNSUPPORTED) return kn_record_fail_unsupported(r, name);
        if (h->field[i] == KN_IN_UNKNOWN && kn_record_suggest(name)) return kn_record_fail_unknown(r, name);
        for (size_t k = 0; k < i; k++) {
            if (h->field[i] == KN_IN_UNKNOWN ? strcmp(h->name[k], name) == 0 : h->field[k] == h->field[i])
                return kn_record_fail(r, KN_EPARSE, "%s: two columns have this name (%zu and %zu)", name,
                                      k + 1, i + 1);
        }
        h->name[i] = strdup(name);
        if (!h->name[i]) return kn_record_no_memory(r);
        h->count = i + 1;
        if (h->field[i] == KN_IN_PROMPT) prompt = true;
    }
    return prompt ? KN_OK : kn_record_fail(r, KN_EPARSE, "no column is named prompt");
}

static int csv_task(const struct kn_reader *r, const struct csv *c, const struct csv_header *h) {
    if (c->count != h->count)
        return kn_record_fail(r, KN_EPARSE, "%zu fields, but the header has %zu", c->count, h->count);
    struct kn_record rec;
    json_object *extra = NULL;
    int rc = kn_record_init(r, &rec);
    for (size_t i = 0; rc == KN_OK && i < c->count; i++) {
        char *cell = c->cells.data + c->at[i];
        if (h->field[i] == KN_IN_UNKNOWN) {
            if (!extra) extra = json_object_new_object();
            json_object *value = json_object_new_string(cell);
            if (!extra || !value || json_object_object_add(extra, h->name[i], value) != 0) {
                json_object_put(value);
                rc = kn_record_no_memory(r);
            }
            continue;
        }
        bool text = h->field[i] == KN_IN_PROMPT || h->field[i] == KN_IN_NEGATIVE;
        if (!text) cell = trim(cell);
        if (h->field[i] == KN_IN_PROMPT && cell[0] == '\0')
            rc = kn_record_fail(r, KN_EPARSE, "prompt: is empty");
        else if (cell[0] != '\0')
            rc = kn_record_set(r, &rec, h->field[i], h->name[i], cell); /* empty: not set */
    }
    if (rc == KN_OK && extra) {
        const char *s =
            json_object_to_json_string_ext(extra, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
        rc = s ? kn_record_set(r, &rec, KN_IN_EXTRA, "extra", s) : kn_record_no_memory(r);
    }
    json_object_put(extra);
    if (rc) {
        kn_task_fini(&rec.t);
        return rc;
    }
    return kn_record_finish(r, &rec);
}

static int csv_read(struct kn_reader *r, const char *p, const char *end, char separator) {
    struct csv_header *h = calloc(1, sizeof *h);
    struct csv *c = calloc(1, sizeof *c);
    r->line = 1;
    int rc = h && c ? KN_OK : kn_record_no_memory(r);
    bool header = false;
    if (rc == KN_OK) {
        *c = (struct csv){.separator = separator, .p = p, .end = end, .next_line = 1};
        kn_buf_init(&c->cells, KN_INPUT_BYTES_MAX);
        while (rc == KN_OK && c->p < c->end) {
            rc = csv_record(r, c);
            if (rc || c->count == 0) continue;
            rc = header ? csv_task(r, c, h) : csv_header_read(r, c, h);
            header = true;
        }
        kn_buf_fini(&c->cells);
    }
    if (h) {
        for (size_t i = 0; i < h->count; i++) free(h->name[i]);
    }
    free(h);
    free(c);
    return rc;
}

/* --- all of them --- */

static const struct {
    const char *name;
    enum kn_input_format format;
} formats[] = {{"txt", KN_INPUT_TXT},
               {"jsonl", KN_INPUT_JSONL},
               {"ndjson", KN_INPUT_JSONL},
               {"csv", KN_INPUT_CSV},
               {"tsv", KN_INPUT_TSV}};

static bool format_find(const char *name, enum kn_input_format *out) {
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        if (strcasecmp(name, formats[i].name) == 0) {
            *out = formats[i].format;
            return true;
        }
    }
    return false;
}

int kn_input_format_parse(const char *text, enum kn_input_format *out, struct kn_err *err) {
    if (format_find(text, out)) return KN_OK;
    return kn_err_set(err, KN_EINVAL, "\"%.*s\" is not one of txt, jsonl, csv, tsv", kn_record_shown(text),
                      text);
}

/* NUL bytes and what is not UTF-8, with the line where it stands, before any reader looks at the text. */
static int bytes_check(struct kn_reader *r, const char *text, size_t len) {
    const char *nul = memchr(text, '\0', len);
    size_t good = kn_utf8_span(text, nul ? (size_t)(nul - text) : len);
    if (good == len) return KN_OK;
    size_t line_begin = 0;
    r->line = 1;
    for (size_t i = 0; i < good; i++) {
        if (text[i] == '\n') {
            r->line++;
            line_begin = i + 1;
        }
    }
    return kn_record_fail(r, KN_EPARSE,
                          text[good] == '\0' ? "a NUL byte (byte %zu of the line)"
                                             : "not UTF-8 (byte %zu of the line)",
                          good - line_begin + 1);
}

int kn_prompts_parse(const char *name, enum kn_input_format format, const char *text, size_t len,
                     struct kn_tasks *out, struct kn_err *err) {
    if (format == KN_INPUT_AUTO) {
        const char *slash = strrchr(name, '/');
        const char *dot = strrchr(slash ? slash : name, '.');
        if (!dot || !format_find(dot + 1, &format))
            return kn_err_set(err, KN_EINVAL,
                              "%s: what format is this? --input-format txt, jsonl, csv or tsv says it", name);
    }
    size_t name_len = strlen(name);
    if (name_len > NAME_SHOWN_MAX) name += name_len - NAME_SHOWN_MAX;
    struct kn_err unheard = {0};
    struct kn_reader r = {.name = name, .line = 1, .out = out, .err = err ? err : &unheard};
    size_t before = out->count;
    int rc = bytes_check(&r, text, len);
    if (rc) return rc;
    if (len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) { /* a byte order mark */
        text += 3;
        len -= 3;
    }
    switch (format) {
    case KN_INPUT_TXT:
        rc = txt_read(&r, text, text + len);
        break;
    case KN_INPUT_JSONL:
        rc = jsonl_read(&r, text, text + len);
        break;
    case KN_INPUT_CSV:
        rc = csv_read(&r, text, text + len, ',');
        break;
    case KN_INPUT_TSV:
        rc = csv_read(&r, text, text + len, '\t');
        break;
    case KN_INPUT_AUTO:
        assert(false); /* resolved above */
        break;
    }
    if (rc) kn_tasks_cut(out, before);
    return rc;
}

int kn_prompts_read(const char *path, enum kn_input_format format, struct kn_tasks *out, struct kn_err *err) {
    bool standard_input = strcmp(path, "-") == 0;
    if (standard_input && format == KN_INPUT_AUTO)
        return kn_err_set(err, KN_EINVAL, "standard input needs --input-format txt, jsonl, csv or tsv");
    struct kn_buf text;
    kn_buf_init(&text, KN_INPUT_BYTES_MAX);
    int rc = kn_fs_read(path, &text, err);
    if (rc == KN_OK)
        rc = kn_prompts_parse(standard_input ? "standard input" : path, format, text.data ? text.data : "",
                              text.len, out, err);
    kn_buf_fini(&text);
    return rc;
}
