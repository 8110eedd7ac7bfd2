/* The reader of .csv and .tsv; the contract is record.h. RFC 4180, and what spreadsheets make of it where
 * a comma is in the numbers: ';' or a tab between fields, a first line "sep=;", decimals as in 7,5, and
 * empty rows and columns at the edges. json-c writes `extra`. */
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/decode.h"
#include "base/record.h"

#define CSV_COLUMNS_MAX 256
#define CSV_QUOTED_MAX (4 * KN_PROMPT_BYTES_MAX) /* a quoted field of a .tsv ends within so many bytes */

struct csv {
    char separator;
    bool tsv; /* quotes may be text */
    const char *p, *end;
    size_t next_line;           /* of p */
    struct kn_buf cells;        /* the record's cells, each ended by a 0 */
    size_t at[CSV_COLUMNS_MAX]; /* where each begins */
    size_t count;
};

/* True when the field at c->p, which begins with a quote, is a quoted one. In .csv always (or it is a mistake);
 * many a .tsv is written without any quoting ("G I G G L E" painted on a wall): there the closing quote must
 * end the field. */
static bool csv_quoted(const struct csv *c) {
    if (!c->tsv) return true;
    const char *end = c->end - c->p > CSV_QUOTED_MAX ? c->p + CSV_QUOTED_MAX : c->end;
    for (const char *p = c->p + 1; p < end; p++) {
        if (*p != '"') continue;
        if (p + 1 == c->end || p[1] == c->separator || p[1] == '\n') return true;
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
            while (c->p < c->end && *c->p != c->separator && *c->p != '\n') {
                if (*c->p == '"' && !c->tsv)
                    return kn_record_fail(r, KN_EPARSE,
                                          "a quote inside a field that does not begin with one (column %zu)",
                                          c->count);
                c->p++;
            }
            size_t at;
            const char *stray = kn_stray_break(from, c->p, &at);
            if (stray)
                return kn_record_fail(
                    r, KN_EPARSE,
                    "%s, in column %zu, may end a line or not: put quotes around the field, or a "
                    "line's end or a blank there",
                    stray, c->count);
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
    while (kn_is_blank(*s) || *s == '\n') s++;
    size_t len = strlen(s);
    while (len > 0 && (kn_is_blank(s[len - 1]) || s[len - 1] == '\n')) len--;
    s[len] = '\0';
    return s;
}

struct csv_header {
    size_t count;
    enum kn_record_field field[CSV_COLUMNS_MAX];
    char *name
        [CSV_COLUMNS_MAX]; /* owns; as the file spells it; "": it has none, and all its cells must be empty */
};

static int csv_header_read(const struct kn_reader *r, const struct csv *c, struct csv_header *h) {
    bool prompt = false;
    for (size_t i = 0; i < c->count; i++) {
        char folded[KN_NAME_MAX + 1], *name = trim(c->cells.data + c->at[i]);
        if (!kn_record_fold(name, folded))
            return kn_record_fail(r, KN_ELIMIT, "%.*s…: a column's name is longer than %d bytes",
                                  kn_record_shown(name), name, KN_NAME_MAX);
        h->field[i] = kn_record_field(folded);
        if (h->field[i] == KN_IN_UNSUPPORTED) return kn_record_fail_unsupported(r, name);
        if (h->field[i] == KN_IN_UNKNOWN && name[0] != '\0') {
            int rc = kn_record_check_unknown(r, name);
            if (rc) return rc;
        }
        for (size_t k = 0; k < i && name[0] != '\0'; k++) {
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

/* "7,5" to "7.5", where a comma cannot be what is between two fields. */
static void decimal_point(char *cell) {
    char *comma = cell + strspn(cell, "-0123456789");
    if (*comma == ',' && comma[1] != '\0' && comma[1 + strspn(comma + 1, "0123456789")] == '\0') *comma = '.';
}

static bool is_number(enum kn_record_field field) {
    return field != KN_IN_SAMPLER && field != KN_IN_SCHEDULE && field != KN_IN_SIZE && field != KN_IN_MODEL;
}

static bool is_empty(const char *cell) {
    while (kn_is_blank(*cell) || *cell == '\n') cell++;
    return *cell == '\0';
}

/* Rows without any text are what a spreadsheet leaves of deleted ones. */
static bool csv_is_empty(const struct csv *c) {
    size_t i = 0;
    while (i < c->count && is_empty(c->cells.data + c->at[i])) i++;
    return i == c->count;
}

/* Cells beyond the header, or below a column that it does not name, must be empty. */
static int csv_check_width(const struct kn_reader *r, const struct csv *c, const struct csv_header *h) {
    bool fits = c->count >= h->count;
    for (size_t i = 0; i < c->count; i++) {
        const char *cell = c->cells.data + c->at[i];
        if (is_empty(cell)) continue;
        if (i >= h->count)
            fits = false;
        else if (h->name[i][0] == '\0')
            return kn_record_fail(
                r, KN_EPARSE,
                "\"%.*s\" is in column %zu, which the header does not name: name it there, or empty it",
                kn_record_shown(cell), cell, i + 1);
    }
    return fits ? KN_OK
                : kn_record_fail(r, KN_EPARSE, "%zu fields, but the header has %zu", c->count, h->count);
}

static int csv_task(const struct kn_reader *r, const struct csv *c, const struct csv_header *h) {
    int rc = csv_check_width(r, c, h);
    if (rc) return rc;
    struct kn_record rec;
    json_object *extra = NULL;
    rc = kn_record_init(r, &rec);
    for (size_t i = 0; rc == KN_OK && i < h->count; i++) {
        char *cell = c->cells.data + c->at[i];
        if (h->name[i][0] == '\0') continue;
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
        if (!text && c->separator != ',' && is_number(h->field[i])) decimal_point(cell);
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

/* Excel's own first line, "sep=;", with or without quotes: says what is between the fields. */
static bool sep_line(struct csv *c) {
    const char *p = c->p;
    bool quoted = p < c->end && *p == '"';
    if (quoted) p++;
    if (c->end - p < 5 || strncasecmp(p, "sep=", 4) != 0 || !strchr(",;\t|", p[4])) return false;
    char separator = p[4];
    p += 5;
    if (quoted && (p == c->end || *p++ != '"')) return false;
    if (p < c->end && *p != '\n') return false;
    c->separator = separator;
    c->p = p < c->end ? p + 1 : p;
    c->next_line++;
    return true;
}

/* A .csv names nowhere what is between its fields: it is that one of , ; and tab with which the header has
 * a column "prompt"; if there is none, the one with which it has the most columns, for the messages that
 * follow. */
static int find_separator(const struct kn_reader *r, struct csv *c) {
    struct kn_err unheard;
    struct kn_reader quiet = {.name = r->name, .err = &unheard};
    const char *begin = c->p;
    size_t line = c->next_line, most = 0;
    char best = ',';
    for (const char *s = ",;\t"; *s; s++) {
        c->separator = *s;
        c->p = begin;
        do {
            int rc = csv_record(&quiet, c);
            if (rc == KN_ENOMEM) return kn_record_no_memory(r);
            if (rc) c->count = 1; /* told when it is read again */
        } while (c->count == 0 && c->p < c->end);
        bool prompt = false;
        for (size_t i = 0; i < c->count && !prompt; i++) {
            char folded[KN_NAME_MAX + 1];
            prompt = c->at[i] < c->cells.len && kn_record_fold(trim(c->cells.data + c->at[i]), folded) &&
                     kn_record_field(folded) == KN_IN_PROMPT;
        }
        if (prompt || c->count > most) best = *s;
        if (prompt) break;
        if (c->count > most) most = c->count;
    }
    c->separator = best;
    c->p = begin;
    c->next_line = line;
    return KN_OK;
}

int kn_csv_read(struct kn_reader *r, const char *p, const char *end, bool tabs) {
    struct csv_header *h = calloc(1, sizeof *h);
    struct csv *c = calloc(1, sizeof *c);
    r->line = 1;
    int rc = KN_OK;
    bool header = false;
    if (!h || !c) {
        rc = kn_record_no_memory(r);
    } else {
        *c = (struct csv){.separator = '\t', .tsv = tabs, .p = p, .end = end, .next_line = 1};
        kn_buf_init(&c->cells, KN_INPUT_BYTES_MAX);
        if (!sep_line(c) && !tabs) rc = find_separator(r, c);
        while (rc == KN_OK && c->p < c->end) {
            rc = csv_record(r, c);
            if (rc || csv_is_empty(c)) continue;
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
