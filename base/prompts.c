/* The reader of prompt files; the contract is prompts.h.
 *
 * Each format's reader cuts its input into records and each record into (name, value) pairs; from there on
 * one path serves them all: record_set() parses a value strictly, record_finish() checks the task and appends
 * it as often as its images say. Every value, a JSON number too, is parsed from the text that stands in the
 * file, so that no library rounds, saturates or guesses; json-c only decodes strings with escapes, validates
 * `extra` and writes it for .csv.
 *
 * Invariant: while a record is read, `line` is where it begins, and every error leaves as "name:line: field:
 * what". */
#include "base/prompts.h"

#include <assert.h>
#include <ctype.h>
#include <json-c/json.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "base/utf8.h"

#define SHOWN_MAX 60       /* bytes of a person's own text in a message */
#define NAME_SHOWN_MAX 200 /* of the file's name: its end */
#define CSV_COLUMNS_MAX 256
#define JSON_DEPTH_MAX 16

enum in_field {
    IN_PROMPT,
    IN_NEGATIVE,
    IN_SEED,
    IN_SAMPLER,
    IN_SCHEDULE,
    IN_STEPS,
    IN_CFG,
    IN_SIZE,
    IN_WIDTH,
    IN_HEIGHT,
    IN_MODEL,
    IN_IMAGES,
    IN_N_ITER,
    IN_BATCH_SIZE,
    IN_EXTRA, /* .jsonl only */
    IN_UNKNOWN,
    IN_UNSUPPORTED,
};

/* The first name of a field is kiln's own, the one that a message suggests first. */
static const struct {
    const char *name;
    enum in_field field;
} in_names[] = {
    {"prompt", IN_PROMPT},
    {"negative", IN_NEGATIVE},
    {"negative_prompt", IN_NEGATIVE},
    {"seed", IN_SEED},
    {"sampler", IN_SAMPLER},
    {"sampler_name", IN_SAMPLER},
    {"schedule", IN_SCHEDULE},
    {"scheduler", IN_SCHEDULE},
    {"schedule_type", IN_SCHEDULE},
    {"steps", IN_STEPS},
    {"cfg", IN_CFG},
    {"cfg_scale", IN_CFG},
    {"size", IN_SIZE},
    {"width", IN_WIDTH},
    {"height", IN_HEIGHT},
    {"model", IN_MODEL},
    {"sd_model", IN_MODEL},
    {"images", IN_IMAGES},
    {"n_iter", IN_N_ITER},
    {"batch_size", IN_BATCH_SIZE},
};
#define IN_NAMES (sizeof in_names / sizeof *in_names)

/* What A1111's prompts-from-file knows and kiln does not do: better refused than ignored. */
static const char *const unsupported_names[] = {"outpath_samples",
                                                "outpath_grids",
                                                "prompt_for_display",
                                                "styles",
                                                "subseed",
                                                "subseed_strength",
                                                "seed_resize_from_h",
                                                "seed_resize_from_w",
                                                "sampler_index",
                                                "restore_faces",
                                                "do_not_save_samples",
                                                "do_not_save_grid",
                                                "tiling",
                                                NULL};

struct reader {
    const char *name;
    size_t line; /* where the record begins */
    struct kn_tasks *out;
    struct kn_err *err;
};

struct record {
    struct kn_task t; /* owns its strings */
    uint32_t given;   /* 1u << enum in_field */
    uint64_t images, n_iter, batch_size;
};

/* --- messages
 * ---------------------------------------------------------------------------------------------------- */

static int fail(const struct reader *r, int code, const char *fmt, ...) KN_PRINTF(3, 4);

static int fail(const struct reader *r, int code, const char *fmt, ...) {
    char text[KN_ERR_TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return kn_err_set(r->err, code, "%s:%zu: %s", r->name, r->line, text);
}

/* Puts "name:line: " or "name:line: field: " before what a lower layer said; returns its code. */
static int fail_in(const struct reader *r, const char *field) {
    if (field) return kn_err_prefix(r->err, "%s:%zu: %s", r->name, r->line, field);
    return kn_err_prefix(r->err, "%s:%zu", r->name, r->line);
}

static int no_memory(const struct reader *r) {
    return fail(r, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
}

static int shown(const char *text) {
    return (int)kn_utf8_cut(text, strlen(text), SHOWN_MAX);
}

/* --- tasks
 * -------------------------------------------------------------------------------------------------------- */

static void task_fini(struct kn_task *t) {
    free(t->prompt);
    free(t->negative);
    free(t->extra);
    free(t->model);
    *t = (struct kn_task){0};
}

static bool copy_string(char **out, const char *s) {
    *out = s ? strdup(s) : NULL;
    return *out || !s;
}

static bool task_copy(struct kn_task *out, const struct kn_task *t) {
    struct kn_task c = *t;
    c.prompt = c.negative = c.extra = c.model = NULL;
    if (copy_string(&c.prompt, t->prompt) && copy_string(&c.negative, t->negative) &&
        copy_string(&c.extra, t->extra) && copy_string(&c.model, t->model)) {
        *out = c;
        return true;
    }
    task_fini(&c);
    return false;
}

/* Room for `more` tasks; the text has no place in it. */
static int tasks_reserve(struct kn_tasks *ts, size_t more, struct kn_err *err) {
    if (more > KN_TASKS_PER_BATCH_MAX || ts->count > KN_TASKS_PER_BATCH_MAX - more)
        return kn_err_set(err, KN_ELIMIT, "more than %d images in a batch", KN_TASKS_PER_BATCH_MAX);
    size_t need = ts->count + more;
    if (need <= ts->cap) return KN_OK;
    size_t cap = ts->cap ? ts->cap : 16;
    while (cap < need) cap *= 2;
    struct kn_task *v = realloc(ts->v, cap * sizeof *v);
    if (!v) return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    ts->v = v;
    ts->cap = cap;
    return KN_OK;
}

static void tasks_cut(struct kn_tasks *ts, size_t count) {
    while (ts->count > count) task_fini(&ts->v[--ts->count]);
}

void kn_tasks_fini(struct kn_tasks *ts) {
    tasks_cut(ts, 0);
    free(ts->v);
    *ts = (struct kn_tasks){0};
}

int kn_tasks_add(struct kn_tasks *ts, const char *prompt, struct kn_err *err) {
    int rc = tasks_reserve(ts, 1, err);
    if (rc) return rc;
    struct kn_task t = {.prompt = strdup(prompt), .negative = strdup("")};
    rc = t.prompt && t.negative ? kn_task_check(&t, err)
                                : kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
    if (rc) {
        task_fini(&t);
        return rc;
    }
    ts->v[ts->count++] = t;
    return KN_OK;
}

int kn_tasks_apply(struct kn_tasks *ts, const struct kn_task *settings, struct kn_err *err) {
    for (size_t i = 0; i < ts->count; i++) {
        struct kn_task *t = &ts->v[i];
        uint32_t missing = settings->set & ~t->set & KN_SET_ALL;
        if (missing == 0) continue;
        if (missing & (KN_SET_NEGATIVE | KN_SET_MODEL)) {
            char *negative = NULL, *model = NULL;
            bool copied = (!(missing & KN_SET_NEGATIVE) || copy_string(&negative, settings->negative)) &&
                          (!(missing & KN_SET_MODEL) || copy_string(&model, settings->model));
            if (!copied) {
                free(negative);
                free(model);
                return kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
            }
            if (missing & KN_SET_NEGATIVE) {
                free(t->negative);
                t->negative = negative;
            }
            if (missing & KN_SET_MODEL) {
                free(t->model);
                t->model = model;
                t->model_index = settings->model_index;
            }
        }
        if (missing & KN_SET_SEED) {
            if (settings->seed >
                UINT64_MAX - t->seed) /* an unset seed holds its offset among the line's images */
                return kn_err_set(err, KN_EINVAL, "task %zu: seed: past %llu", i,
                                  (unsigned long long)UINT64_MAX);
            t->seed += settings->seed;
        }
        if (missing & KN_SET_SAMPLER) t->sampler = settings->sampler;
        if (missing & KN_SET_SCHEDULE) t->schedule = settings->schedule;
        if (missing & KN_SET_STEPS) t->steps = settings->steps;
        if (missing & KN_SET_CFG) t->cfg = settings->cfg;
        if (missing & KN_SET_SIZE) {
            t->width = settings->width;
            t->height = settings->height;
        }
        t->set |= missing;
        int rc = kn_task_check(t, err);
        if (rc) {
            kn_err_prefix(err, "task %zu", i);
            return rc;
        }
    }
    return KN_OK;
}

int kn_tasks_expand(struct kn_tasks *ts, uint32_t images, uint64_t first_seed, struct kn_err *err) {
    if (images < 1 || images > KN_IMAGES_MAX)
        return kn_err_set(err, KN_EINVAL, "images: %u is not between 1 and %d", images, KN_IMAGES_MAX);
    struct kn_tasks all = {0};
    int rc = KN_OK;
    for (size_t i = 0; rc == KN_OK && i < ts->count; i++) {
        struct kn_task *t = &ts->v[i];
        uint32_t n = t->set & KN_SET_IMAGES ? 1 : images;
        uint64_t first = t->seed, offset = t->set & KN_SET_SEED ? 0 : first_seed;
        if (offset > UINT64_MAX - first || n - 1 > UINT64_MAX - first - offset)
            rc = kn_err_set(err, KN_EINVAL, "task %zu: seed: %u images go past %llu", i, n,
                            (unsigned long long)UINT64_MAX);
        if (rc == KN_OK) rc = tasks_reserve(&all, n, err);
        for (uint32_t k = 0; rc == KN_OK && k < n; k++) {
            struct kn_task *to = &all.v[all.count];
            if (!task_copy(to, t)) {
                rc = kn_err_set(err, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
                break;
            }
            all.count++;
            to->seed = first + offset + k;
            to->set = (to->set | KN_SET_SEED) & ~(uint32_t)KN_SET_IMAGES;
        }
    }
    if (rc) {
        kn_tasks_fini(&all);
        return rc;
    }
    kn_tasks_fini(ts);
    *ts = all;
    return KN_OK;
}

/* --- one record
 * --------------------------------------------------------------------------------------------------- */

static int record_init(const struct reader *r, struct record *rec) {
    *rec = (struct record){.t = {.negative = strdup("")}, .images = 1, .n_iter = 1, .batch_size = 1};
    return rec->t.negative ? KN_OK : no_memory(r);
}

/* Lower case, ' ' and '-' as '_': how the names of options and columns are compared. False: too long to be
 * known. */
static bool name_fold(const char *name, char out[KN_NAME_MAX + 1]) {
    size_t n = 0;
    for (; name[n]; n++) {
        if (n == KN_NAME_MAX) return false;
        out[n] = name[n] == ' ' || name[n] == '-' ? '_' : (char)tolower((unsigned char)name[n]);
    }
    out[n] = '\0';
    return true;
}

static enum in_field name_find(const char *folded) {
    for (size_t i = 0; i < IN_NAMES; i++) {
        if (strcmp(folded, in_names[i].name) == 0) return in_names[i].field;
    }
    for (size_t i = 0; unsupported_names[i]; i++) {
        if (strcmp(folded, unsupported_names[i]) == 0) return IN_UNSUPPORTED;
    }
    return IN_UNKNOWN;
}

static const char *name_suggest(const char *word) {
    const char *names[IN_NAMES + 1];
    for (size_t i = 0; i < IN_NAMES; i++) names[i] = in_names[i].name;
    names[IN_NAMES] = NULL;
    return kn_suggest(word, names);
}

static int fail_unknown(const struct reader *r, const char *name) {
    const char *near = name_suggest(name);
    if (near) return fail(r, KN_EPARSE, "%.*s: unknown, did you mean %s?", shown(name), name, near);
    return fail(r, KN_EPARSE,
                "%.*s: unknown; known are prompt, negative, seed, sampler, schedule, steps, cfg, size, "
                "width, height, "
                "model, images",
                shown(name), name);
}

static int fail_unsupported(const struct reader *r, const char *name) {
    return fail(r, KN_EUNSUPPORTED, "%s: not supported", name);
}

/* A whole number, all of the text, without sign or leading blanks. */
static int parse_whole(const struct reader *r, const char *field, const char *text, uint64_t min,
                       uint64_t max, uint64_t *out) {
    const char *digits = text[0] == '-' ? text + 1 : text;
    size_t len = strspn(digits, "0123456789");
    if (len == 0 || digits[len] != '\0')
        return fail(r, KN_EPARSE, "%s: \"%.*s\" is not a whole number", field, shown(text), text);
    uint64_t v = 0;
    bool fits = digits == text;
    for (size_t i = 0; fits && i < len; i++) {
        unsigned d = (unsigned)(digits[i] - '0');
        if (v > (UINT64_MAX - d) / 10)
            fits = false;
        else
            v = v * 10 + d;
    }
    if (!fits || v < min || v > max)
        return fail(r, KN_EINVAL, "%s: %.*s is not between %llu and %llu", field, shown(text), text,
                    (unsigned long long)min, (unsigned long long)max);
    *out = v;
    return KN_OK;
}

/* How many of the first bytes are a number as JSON writes it. */
static size_t number_span(const char *p, size_t len) {
    size_t i = 0, from;
    if (i < len && p[i] == '-') i++;
    from = i;
    while (i < len && isdigit((unsigned char)p[i])) i++;
    if (i == from || (p[from] == '0' && i - from > 1)) return 0;
    if (i < len && p[i] == '.') {
        from = ++i;
        while (i < len && isdigit((unsigned char)p[i])) i++;
        if (i == from) return 0;
    }
    if (i < len && (p[i] == 'e' || p[i] == 'E')) {
        i++;
        if (i < len && (p[i] == '+' || p[i] == '-')) i++;
        from = i;
        while (i < len && isdigit((unsigned char)p[i])) i++;
        if (i == from) return 0;
    }
    return i;
}

static int parse_cfg(const struct reader *r, const char *field, const char *text, float *out) {
    size_t len = strlen(text);
    if (len == 0 || number_span(text, len) != len)
        return fail(r, KN_EPARSE, "%s: \"%.*s\" is not a number", field, shown(text), text);
    float v = strtof(text, NULL);
    if (!(v >= (float)KN_CFG_MIN && v <= (float)KN_CFG_MAX))
        return fail(r, KN_EINVAL, "%s: %.*s is not between %g and %g", field, shown(text), text, KN_CFG_MIN,
                    KN_CFG_MAX);
    *out = v;
    return KN_OK;
}

/* Notes that the record has the field; the second time is an error, and so are two ways to say one thing. */
static int record_give(const struct reader *r, struct record *rec, enum in_field field, const char *name) {
    static const uint32_t size_bits = 1u << IN_WIDTH | 1u << IN_HEIGHT,
                          image_bits = 1u << IN_N_ITER | 1u << IN_BATCH_SIZE;
    uint32_t bit = 1u << field, against = bit;
    if (field == IN_SIZE) against |= size_bits;
    if (bit & size_bits) against |= 1u << IN_SIZE;
    if (field == IN_IMAGES) against |= image_bits;
    if (bit & image_bits) against |= 1u << IN_IMAGES;
    if (rec->given & against) return fail(r, KN_EPARSE, "%s: given twice", name);
    rec->given |= bit;
    return KN_OK;
}

static int set_string(const struct reader *r, char **out, const char *text) {
    char *copy = strdup(text);
    if (!copy) return no_memory(r);
    free(*out);
    *out = copy;
    return KN_OK;
}

/* Parses `text` as the field's value. `name` is how the file spells the field, for messages. */
static int record_set(const struct reader *r, struct record *rec, enum in_field field, const char *name,
                      const char *text) {
    struct kn_task *t = &rec->t;
    uint64_t v = 0;
    int rc = record_give(r, rec, field, name);
    if (rc) return rc;
    switch (field) {
    case IN_PROMPT:
        return set_string(r, &t->prompt, text);
    case IN_NEGATIVE:
        rc = set_string(r, &t->negative, text);
        if (rc == KN_OK) t->set |= KN_SET_NEGATIVE;
        return rc;
    case IN_SEED:
        if (strcmp(text, "-1") == 0) return KN_OK; /* A1111's "a random one": as if nothing was said */
        rc = parse_whole(r, name, text, 0, UINT64_MAX, &t->seed);
        if (rc == KN_OK) t->set |= KN_SET_SEED;
        return rc;
    case IN_SAMPLER:
        if (kn_sampler_parse(text, &t->sampler, r->err)) return fail_in(r, name);
        t->set |= KN_SET_SAMPLER;
        return KN_OK;
    case IN_SCHEDULE:
        if (kn_schedule_parse(text, &t->schedule, r->err)) return fail_in(r, name);
        t->set |= KN_SET_SCHEDULE;
        return KN_OK;
    case IN_STEPS:
        rc = parse_whole(r, name, text, KN_STEPS_MIN, KN_STEPS_MAX, &v);
        t->steps = (uint32_t)v;
        if (rc == KN_OK) t->set |= KN_SET_STEPS;
        return rc;
    case IN_CFG:
        rc = parse_cfg(r, name, text, &t->cfg);
        if (rc == KN_OK) t->set |= KN_SET_CFG;
        return rc;
    case IN_SIZE:
        if (kn_size_parse(text, &t->width, &t->height, r->err)) return fail_in(r, name);
        t->set |= KN_SET_SIZE;
        return KN_OK;
    case IN_WIDTH:
        rc = parse_whole(r, name, text, KN_SIZE_MIN, KN_SIZE_MAX, &v);
        t->width = (uint32_t)v;
        return rc;
    case IN_HEIGHT:
        rc = parse_whole(r, name, text, KN_SIZE_MIN, KN_SIZE_MAX, &v);
        t->height = (uint32_t)v;
        return rc;
    case IN_MODEL:
        if (text[0] == '\0') return fail(r, KN_EINVAL, "%s: is empty", name);
        rc = set_string(r, &t->model, text);
        if (rc == KN_OK) t->set |= KN_SET_MODEL;
        return rc;
    case IN_IMAGES:
        return parse_whole(r, name, text, 1, KN_IMAGES_MAX, &rec->images);
    case IN_N_ITER:
        return parse_whole(r, name, text, 1, KN_IMAGES_MAX, &rec->n_iter);
    case IN_BATCH_SIZE:
        return parse_whole(r, name, text, 1, KN_IMAGES_MAX, &rec->batch_size);
    case IN_EXTRA:
        return set_string(r, &t->extra, text);
    case IN_UNKNOWN:
    case IN_UNSUPPORTED:
        break;
    }
    assert(!"record_set: not a field");
    return KN_EINTERNAL;
}

/* Checks the record and appends its tasks; the record is empty afterwards, whatever came of it. */
static int record_finish(const struct reader *r, struct record *rec) {
    static const uint32_t count_bits = 1u << IN_IMAGES | 1u << IN_N_ITER | 1u << IN_BATCH_SIZE;
    struct kn_task *t = &rec->t;
    bool width = rec->given & 1u << IN_WIDTH, height = rec->given & 1u << IN_HEIGHT;
    uint64_t n = rec->images * rec->n_iter * rec->batch_size; /* at most 1e10: no overflow */
    int rc = KN_OK;
    if (!t->prompt) {
        rc = fail(r, KN_EPARSE, "prompt: missing");
    } else if (width != height) {
        rc = fail(r, KN_EPARSE, width ? "width: needs height beside it" : "height: needs width beside it");
    } else {
        if (width) t->set |= KN_SET_SIZE;
        if (rec->given & count_bits) t->set |= KN_SET_IMAGES;
        rc = kn_task_check(t, r->err);
        if (rc) fail_in(r, NULL);
    }
    if (rc == KN_OK && n > KN_IMAGES_MAX)
        rc = fail(r, KN_EINVAL, "images: n_iter times batch_size is more than %d", KN_IMAGES_MAX);
    if (rc == KN_OK && t->set & KN_SET_SEED && n - 1 > UINT64_MAX - t->seed)
        rc = fail(r, KN_EINVAL, "seed: %llu images go past %llu", (unsigned long long)n,
                  (unsigned long long)UINT64_MAX);
    if (rc == KN_OK) {
        rc = tasks_reserve(r->out, n, r->err);
        if (rc) fail_in(r, NULL);
    }
    for (uint64_t i = 0; rc == KN_OK && i < n; i++) {
        struct kn_task *to = &r->out->v[r->out->count];
        if (i + 1 == n) { /* the last one takes the record's own strings */
            *to = *t;
            *t = (struct kn_task){0};
        } else if (!task_copy(to, t)) {
            rc = no_memory(r);
            break;
        }
        to->seed += i; /* with no seed set: the offset from the seed that the task will get */
        r->out->count++;
    }
    task_fini(t);
    return rc;
}

/* --- .txt
 * ---------------------------------------------------------------------------------------------------------
 */

static bool is_blank(char c) {
    return c == ' ' || c == '\t' || c == '\r' || c == '\v' || c == '\f';
}

static bool option_begins(const char *p, const char *end) {
    return end - p > 2 && p[0] == '-' && p[1] == '-' && isalpha((unsigned char)p[2]);
}

/* One word as a shell would split it: '…' is literal; in "…" a backslash escapes '"' and '\'; elsewhere it
 * escapes any character. *quoted tells whether a part of it was quoted or escaped: then it is no option,
 * whatever it begins with. */
static int word_next(const struct reader *r, const char **at, const char *end, struct kn_buf *out) {
    const char *p = *at;
    char in = 0;
    int rc = KN_OK;
    kn_buf_clear(out);
    rc = kn_buf_append(out, "", 0);
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
    if (rc) return fail(r, rc, "%s", kn_err_words(rc));
    if (in != 0) return fail(r, KN_EPARSE, "a quote (%c) is not closed", in);
    *at = p;
    return KN_OK;
}

/* The options of a line, from its first "--" on. `word` and `value` are the caller's scratch. */
static int txt_options(const struct reader *r, struct record *rec, const char *p, const char *end,
                       struct kn_buf *word, struct kn_buf *value) {
    int rc = KN_OK;
    for (;;) {
        while (p < end && is_blank(*p)) p++;
        if (p == end) return KN_OK;
        bool option = option_begins(p, end);
        rc = word_next(r, &p, end, word);
        if (rc) return rc;
        if (!option)
            return fail(r, KN_EPARSE,
                        "\"%.*s\" belongs to no option; put quotes around a value that holds blanks",
                        shown(word->data), word->data);
        char *name = word->data + 2, folded[KN_NAME_MAX + 1];
        char *equals = strchr(name, '=');
        if (equals) *equals = '\0';
        enum in_field field = name_fold(name, folded) ? name_find(folded) : IN_UNKNOWN;
        if (field == IN_UNKNOWN) return fail_unknown(r, name);
        if (field == IN_UNSUPPORTED) return fail_unsupported(r, name);

        kn_buf_clear(value);
        rc = kn_buf_appends(value, equals ? equals + 1 : "");
        if (rc) return fail(r, rc, "%s", kn_err_words(rc));
        bool any = equals != NULL;
        /* A prompt need not be quoted, as in A1111: it goes on to the next option. */
        bool many = field == IN_PROMPT || field == IN_NEGATIVE;
        char kept[KN_NAME_MAX + 1];
        snprintf(kept, sizeof kept, "%s", name); /* word is needed for the values */
        while (!any || many) {
            while (p < end && is_blank(*p)) p++;
            if (p == end || option_begins(p, end)) break;
            rc = word_next(r, &p, end, word);
            if (rc) return rc;
            if (any) rc = kn_buf_appends(value, " ");
            if (rc == KN_OK) rc = kn_buf_append(value, word->data, word->len);
            if (rc) return fail(r, rc, "%s", kn_err_words(rc));
            any = true;
        }
        if (!any) return fail(r, KN_EPARSE, "%s: needs a value", kept);
        rc = record_set(r, rec, field, kept, value->data);
        if (rc) return rc;
    }
}

static int txt_line(const struct reader *r, const char *p, const char *end, struct kn_buf *word,
                    struct kn_buf *value) {
    struct record rec;
    int rc = record_init(r, &rec);
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
            fail(r, rc, "prompt: %s", kn_err_words(rc));
        else
            rc = record_set(r, &rec, IN_PROMPT, "prompt", value->data);
    }
    if (rc == KN_OK) rc = txt_options(r, &rec, options, end, word, value);
    if (rc) {
        task_fini(&rec.t);
        return rc;
    }
    return record_finish(r, &rec);
}

static int txt_read(struct reader *r, const char *p, const char *end) {
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

/* --- .jsonl
 * ------------------------------------------------------------------------------------------------------- */

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
static int json_text(const struct reader *r, const char *p, const char *end, struct kn_buf *out) {
    int rc;
    kn_buf_clear(out);
    if (!memchr(p, '\\', (size_t)(end - p))) {
        rc = kn_buf_append(out, p + 1, (size_t)(end - p) - 2);
    } else {
        json_object *s = json_parse(p, (size_t)(end - p));
        if (!s) return fail(r, KN_EPARSE, "a malformed string");
        rc = kn_buf_append(out, json_object_get_string(s), (size_t)json_object_get_string_len(s));
        json_object_put(s);
    }
    return rc ? fail(r, rc, "%s", kn_err_words(rc)) : KN_OK;
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
static int json_value(const struct reader *r, struct record *rec, enum in_field field, const char *name,
                      const char **at, const char *end, struct kn_buf *text) {
    static const uint32_t number_bits = 1u << IN_SEED | 1u << IN_STEPS | 1u << IN_CFG | 1u << IN_WIDTH |
                                        1u << IN_HEIGHT | 1u << IN_IMAGES | 1u << IN_N_ITER |
                                        1u << IN_BATCH_SIZE;
    const char *p = *at, *why = NULL, *stop;
    bool number = number_bits >> field & 1;
    const char *wanted = field == IN_EXTRA ? "an object" : number ? "a number" : "a string";
    int rc;

    if (*p == '"') {
        stop = json_string_end(p, end, &why);
        if (!stop) return fail(r, KN_EPARSE, "%s: %s", name, why);
        rc = json_text(r, p, stop, text);
        if (rc) return rc;
        if (number || field == IN_EXTRA)
            return fail(r, KN_EPARSE, "%s: \"%.*s\" is a string, not %s", name, shown(text->data), text->data,
                        wanted);
    } else if (*p == '{' || *p == '[') {
        stop = json_nest_end(p, end, &why);
        if (!stop) return fail(r, KN_EPARSE, "%s: %s", name, why);
        if (field != IN_EXTRA || *p != '{') return fail(r, KN_EPARSE, "%s: is not %s", name, wanted);
        json_object *o = json_parse(p, (size_t)(stop - p));
        if (!o)
            return fail(r, KN_EPARSE, "%s: malformed JSON, or nested deeper than %d", name, JSON_DEPTH_MAX);
        json_object_put(o);
        kn_buf_clear(text);
        rc = kn_buf_append(text, p, (size_t)(stop - p));
        if (rc) return fail(r, rc, "%s: %s", name, kn_err_words(rc));
    } else if (end - p >= 4 && memcmp(p, "null", 4) == 0) {
        *at = p + 4; /* as if the key were not there; but not twice */
        return record_give(r, rec, field, name);
    } else {
        size_t len = number_span(p, (size_t)(end - p));
        if (len == 0 || !number) {
            size_t n = 0;
            while (p + n < end && n < SHOWN_MAX && !strchr(",}] \t\r", p[n])) n++;
            return fail(r, KN_EPARSE, "%s: %.*s is not %s", name, (int)n, p, wanted);
        }
        stop = p + len;
        kn_buf_clear(text);
        rc = kn_buf_append(text, p, len);
        if (rc) return fail(r, rc, "%s: %s", name, kn_err_words(rc));
    }
    *at = stop;
    return record_set(r, rec, field, name, text->data);
}

static int json_pairs(const struct reader *r, struct record *rec, const char *p, const char *end,
                      struct kn_buf *key, struct kn_buf *text) {
    const char *why = NULL;
    if (*p != '{') return fail(r, KN_EPARSE, "a line holds one JSON object");
    p++;
    for (bool first = true;; first = false) {
        while (p < end && json_blank(*p)) p++;
        if (first && p < end && *p == '}') break;
        if (p == end || *p != '"') return fail(r, KN_EPARSE, "a key in quotes is missing");
        const char *key_end = json_string_end(p, end, &why);
        if (!key_end) return fail(r, KN_EPARSE, "%s", why);
        int rc = json_text(r, p, key_end, key);
        if (rc) return rc;
        p = key_end;
        while (p < end && json_blank(*p)) p++;
        if (p == end || *p != ':')
            return fail(r, KN_EPARSE, "%.*s: a colon is missing", shown(key->data), key->data);
        p++;
        while (p < end && json_blank(*p)) p++;
        if (p == end) return fail(r, KN_EPARSE, "%.*s: a value is missing", shown(key->data), key->data);

        enum in_field field = strcmp(key->data, "extra") == 0 ? IN_EXTRA : name_find(key->data);
        if (field == IN_UNKNOWN) return fail_unknown(r, key->data);
        if (field == IN_UNSUPPORTED) return fail_unsupported(r, key->data);
        rc = json_value(r, rec, field, key->data, &p, end, text);
        if (rc) return rc;

        while (p < end && json_blank(*p)) p++;
        if (p < end && *p == '}') break;
        if (p == end || *p != ',')
            return fail(r, KN_EPARSE, "%.*s: a comma or a closing brace is missing after it",
                        shown(key->data), key->data);
        p++;
    }
    for (p++; p < end; p++) {
        if (!json_blank(*p)) return fail(r, KN_EPARSE, "something follows the JSON object");
    }
    return KN_OK;
}

static int jsonl_read(struct reader *r, const char *p, const char *end) {
    struct kn_buf key, text;
    kn_buf_init(&key, KN_INPUT_BYTES_MAX);
    kn_buf_init(&text, KN_INPUT_BYTES_MAX);
    int rc = KN_OK;
    for (r->line = 1; rc == KN_OK && p < end; r->line++) {
        const char *newline = memchr(p, '\n', (size_t)(end - p));
        const char *stop = newline ? newline : end, *next = newline ? newline + 1 : end;
        while (p < stop && json_blank(*p)) p++;
        if (p < stop) {
            struct record rec;
            rc = record_init(r, &rec);
            if (rc == KN_OK) rc = json_pairs(r, &rec, p, stop, &key, &text);
            if (rc == KN_OK)
                rc = record_finish(r, &rec);
            else
                task_fini(&rec.t);
        }
        p = next;
    }
    kn_buf_fini(&key);
    kn_buf_fini(&text);
    return rc;
}

/* --- .csv, .tsv (RFC 4180)
 * ---------------------------------------------------------------------------------------- */

struct csv {
    char separator;
    const char *p, *end;
    size_t next_line;           /* of p */
    struct kn_buf cells;        /* the record's cells, each ended by a 0 */
    size_t at[CSV_COLUMNS_MAX]; /* where each begins */
    size_t count;
};

/* Reads one record. r->line becomes the line where it begins. count 0: an empty line. */
static int csv_record(struct reader *r, struct csv *c) {
    r->line = c->next_line;
    c->count = 0;
    kn_buf_clear(&c->cells);
    bool any = false; /* a separator, a quote or a character was seen */
    for (;;) {
        if (c->count == CSV_COLUMNS_MAX) return fail(r, KN_ELIMIT, "more than %d columns", CSV_COLUMNS_MAX);
        c->at[c->count++] = c->cells.len;
        int rc = KN_OK;
        if (c->p < c->end && *c->p == '"') {
            any = true;
            for (c->p++;; c->p++) {
                if (c->p == c->end)
                    return fail(r, KN_EPARSE, "a quoted field does not end (column %zu)", c->count);
                if (*c->p == '"') {
                    if (c->end - c->p > 1 && c->p[1] == '"')
                        c->p++;
                    else
                        break;
                }
                if (*c->p == '\n') c->next_line++;
                rc = kn_buf_append(&c->cells, c->p, 1);
                if (rc) return fail(r, rc, "%s", kn_err_words(rc));
            }
            c->p++;
        } else {
            const char *from = c->p;
            while (c->p < c->end && *c->p != c->separator && *c->p != '\n' &&
                   !(*c->p == '\r' && (c->end - c->p == 1 || c->p[1] == '\n'))) {
                if (*c->p == '"' && c->separator == ',')
                    return fail(r, KN_EPARSE,
                                "a quote inside a field that does not begin with one (column %zu)", c->count);
                c->p++;
            }
            if (c->p > from) any = true;
            rc = kn_buf_append(&c->cells, from, (size_t)(c->p - from));
        }
        if (rc == KN_OK) rc = kn_buf_append(&c->cells, "", 1);
        if (rc) return fail(r, rc, "%s", kn_err_words(rc));
        if (c->p < c->end && *c->p == c->separator) {
            any = true;
            c->p++;
            continue;
        }
        if (c->p < c->end && *c->p == '\r' && (c->end - c->p == 1 || c->p[1] == '\n')) c->p++;
        if (c->p == c->end) break;
        if (*c->p != '\n')
            return fail(r, KN_EPARSE, "something follows a quoted field (column %zu)", c->count);
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
    enum in_field field[CSV_COLUMNS_MAX];
    char *name[CSV_COLUMNS_MAX]; /* owns; as the file spells it */
};

static int csv_header_read(const struct reader *r, const struct csv *c, struct csv_header *h) {
    bool prompt = false;
    for (size_t i = 0; i < c->count; i++) {
        char folded[KN_NAME_MAX + 1], *name = trim(c->cells.data + c->at[i]);
        if (name[0] == '\0') return fail(r, KN_EPARSE, "column %zu has no name", i + 1);
        if (!name_fold(name, folded))
            return fail(r, KN_ELIMIT, "%.*s…: a column's name is longer than %d bytes", shown(name), name,
                        KN_NAME_MAX);
        h->field[i] = name_find(folded);
        if (h->field[i] == IN_UNSUPPORTED) return fail_unsupported(r, name);
        if (h->field[i] == IN_UNKNOWN && name_suggest(name)) return fail_unknown(r, name);
        for (size_t k = 0; k < i; k++) {
            if (h->field[i] == IN_UNKNOWN ? strcmp(h->name[k], name) == 0 : h->field[k] == h->field[i])
                return fail(r, KN_EPARSE, "%s: two columns have this name (%zu and %zu)", name, k + 1, i + 1);
        }
        h->name[i] = strdup(name);
        if (!h->name[i]) return no_memory(r);
        h->count = i + 1;
        if (h->field[i] == IN_PROMPT) prompt = true;
    }
    return prompt ? KN_OK : fail(r, KN_EPARSE, "no column is named prompt");
}

static int csv_task(const struct reader *r, const struct csv *c, const struct csv_header *h) {
    if (c->count != h->count)
        return fail(r, KN_EPARSE, "%zu fields, but the header has %zu", c->count, h->count);
    struct record rec;
    json_object *extra = NULL;
    int rc = record_init(r, &rec);
    for (size_t i = 0; rc == KN_OK && i < c->count; i++) {
        char *cell = c->cells.data + c->at[i];
        if (h->field[i] == IN_UNKNOWN) {
            if (!extra) extra = json_object_new_object();
            json_object *value = json_object_new_string(cell);
            if (!extra || !value || json_object_object_add(extra, h->name[i], value) != 0) {
                json_object_put(value);
                rc = no_memory(r);
            }
            continue;
        }
        bool text = h->field[i] == IN_PROMPT || h->field[i] == IN_NEGATIVE;
        if (!text) cell = trim(cell);
        if (h->field[i] == IN_PROMPT && cell[0] == '\0')
            rc = fail(r, KN_EPARSE, "prompt: is empty");
        else if (cell[0] != '\0')
            rc = record_set(r, &rec, h->field[i], h->name[i], cell); /* empty: not set */
    }
    if (rc == KN_OK && extra) {
        const char *s =
            json_object_to_json_string_ext(extra, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
        rc = s ? set_string(r, &rec.t.extra, s) : no_memory(r);
    }
    json_object_put(extra);
    if (rc) {
        task_fini(&rec.t);
        return rc;
    }
    return record_finish(r, &rec);
}

static int csv_read(struct reader *r, const char *p, const char *end, char separator) {
    struct csv_header *h = calloc(1, sizeof *h);
    struct csv *c = calloc(1, sizeof *c);
    r->line = 1;
    int rc = h && c ? KN_OK : no_memory(r);
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

/* --- all of them
 * -------------------------------------------------------------------------------------------------- */

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
    return kn_err_set(err, KN_EINVAL, "\"%.*s\" is not one of txt, jsonl, csv, tsv", shown(text), text);
}

/* NUL bytes and what is not UTF-8, with the line where it stands, before any reader looks at the text. */
static int bytes_check(struct reader *r, const char *text, size_t len) {
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
    return fail(r, KN_EPARSE,
                text[good] == '\0' ? "a NUL byte (byte %zu of the line)" : "not UTF-8 (byte %zu of the line)",
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
    struct reader r = {.name = name, .line = 1, .out = out, .err = err ? err : &unheard};
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
        assert(!"resolved above");
        break;
    }
    if (rc) tasks_cut(out, before);
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
