/* One record of a prompt file, whatever the format; the contract is record.h. Every value, a JSON number too,
 * is parsed here from the text that stands in the file, so that no library rounds, saturates or guesses. */
#include "base/record.h"

#include <assert.h>
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/utf8.h"

/* The first name of a field is kiln's own, the one that a message suggests first. */
static const struct {
    const char *name;
    enum kn_record_field field;
} in_names[] = {
    {"prompt", KN_IN_PROMPT},
    {"negative", KN_IN_NEGATIVE},
    {"negative_prompt", KN_IN_NEGATIVE},
    {"seed", KN_IN_SEED},
    {"sampler", KN_IN_SAMPLER},
    {"sampler_name", KN_IN_SAMPLER},
    {"schedule", KN_IN_SCHEDULE},
    {"scheduler", KN_IN_SCHEDULE},
    {"schedule_type", KN_IN_SCHEDULE},
    {"steps", KN_IN_STEPS},
    {"cfg", KN_IN_CFG},
    {"cfg_scale", KN_IN_CFG},
    {"size", KN_IN_SIZE},
    {"width", KN_IN_WIDTH},
    {"height", KN_IN_HEIGHT},
    {"model", KN_IN_MODEL},
    {"sd_model", KN_IN_MODEL},
    {"images", KN_IN_IMAGES},
    {"n_iter", KN_IN_N_ITER},
    {"batch_size", KN_IN_BATCH_SIZE},
};
#define IN_NAMES (sizeof in_names / sizeof *in_names)

/* Names that A1111's prompts-from-file knows and kiln does not: better refused than ignored. */
static const char *const unsupported_names[] = {
    "outpath_samples",
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
    NULL,
};

int kn_record_fail(const struct kn_reader *r, int code, const char *fmt, ...) {
    char text[KN_ERR_TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (r->element)
        return kn_err_set(r->err, code, "%s:%zu: element %zu: %s", r->name, r->line, r->element, text);
    return kn_err_set(r->err, code, "%s:%zu: %s", r->name, r->line, text);
}

int kn_record_fail_in(const struct kn_reader *r, const char *field) {
    if (field) kn_err_prefix(r->err, "%s", field);
    if (r->element) kn_err_prefix(r->err, "element %zu", r->element);
    return kn_err_prefix(r->err, "%s:%zu", r->name, r->line);
}

int kn_record_no_memory(const struct kn_reader *r) {
    return kn_record_fail(r, KN_ENOMEM, "%s", kn_err_words(KN_ENOMEM));
}

int kn_record_shown(const char *text) {
    return (int)kn_utf8_cut(text, strlen(text), KN_SHOWN_MAX);
}

int kn_record_init(const struct kn_reader *r, struct kn_record *rec) {
    *rec = (struct kn_record){.t = {.negative = strdup("")}, .images = 1, .n_iter = 1, .batch_size = 1};
    return rec->t.negative ? KN_OK : kn_record_no_memory(r);
}

bool kn_record_fold(const char *name, char out[KN_NAME_MAX + 1]) {
    size_t n = 0;
    for (; name[n]; n++) {
        if (n == KN_NAME_MAX) return false;
        out[n] = name[n] == ' ' || name[n] == '-' ? '_' : (char)tolower((unsigned char)name[n]);
    }
    out[n] = '\0';
    return true;
}

enum kn_record_field kn_record_field(const char *folded) {
    for (size_t i = 0; i < IN_NAMES; i++) {
        if (strcmp(folded, in_names[i].name) == 0) return in_names[i].field;
    }
    for (size_t i = 0; unsupported_names[i]; i++) {
        if (strcmp(folded, unsupported_names[i]) == 0) return KN_IN_UNSUPPORTED;
    }
    return KN_IN_UNKNOWN;
}

/* See kn_record_check_unknown(). Both are folded. */
static bool is_misspelt(const char *word, const char *name) {
    size_t lw = strlen(word), ln = strlen(name), head = 0, tail = 0, shorter = lw < ln ? lw : ln;
    while (head < shorter && word[head] == name[head]) head++;
    while (tail < shorter - head && word[lw - 1 - tail] == name[ln - 1 - tail]) tail++;
    size_t w = lw - head - tail, n = ln - head - tail; /* what is left to differ */
    if (ln < 5) return false;
    if (w == 2 && n == 2 && word[head] == name[head + 1] && word[head + 1] == name[head]) return true;
    return w <= 1 && n <= 1 && (ln >= 8 || (head > 0 && tail > 0));
}

int kn_record_check_unknown(const struct kn_reader *r, const char *name) {
    char folded[KN_NAME_MAX + 1] = "";
    if (r->strict) return kn_record_fail_unknown(r, name);
    if (!kn_record_fold(name, folded)) return KN_OK; /* longer than any name that is known */
    for (size_t i = 0; i < IN_NAMES; i++) {
        if (is_misspelt(folded, in_names[i].name)) return kn_record_fail_unknown(r, name);
    }
    return KN_OK;
}

int kn_record_fail_unknown(const struct kn_reader *r, const char *name) {
    const char *names[IN_NAMES + 1];
    for (size_t i = 0; i < IN_NAMES; i++) names[i] = in_names[i].name;
    names[IN_NAMES] = NULL;
    const char *near = kn_suggest(name, names);
    if (near)
        return kn_record_fail(r, KN_EPARSE, "%.*s: unknown, did you mean %s?", kn_record_shown(name), name,
                              near);
    return kn_record_fail(
        r, KN_EPARSE,
        "%.*s: unknown; known are prompt, negative, seed, sampler, schedule, steps, cfg, size, width, height, "
        "model, images",
        kn_record_shown(name), name);
}

int kn_record_fail_unsupported(const struct kn_reader *r, const char *name) {
    return kn_record_fail(r, KN_EUNSUPPORTED, "%s: not supported", name);
}

/* How many of the first bytes are a number without what spreadsheets put behind it in a column that has
 * gaps: 20.0 */
static size_t span_without_zeros(const char *text) {
    size_t len = strlen(text), end = len;
    while (end > 0 && text[end - 1] == '0') end--;
    return end < len && end > 0 && text[end - 1] == '.' ? end - 1 : len;
}

/* A whole number, all of the text but ".0", without sign or leading blanks. */
static int parse_whole(const struct kn_reader *r, const char *field, const char *text, uint64_t min,
                       uint64_t max, uint64_t *out) {
    const char *digits = text[0] == '-' ? text + 1 : text;
    size_t len = strspn(digits, "0123456789");
    if (len == 0 || digits + len != text + span_without_zeros(text))
        return kn_record_fail(r, KN_EPARSE, "%s: \"%.*s\" is not a whole number", field,
                              kn_record_shown(text), text);
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
        return kn_record_fail(r, KN_EINVAL, "%s: %.*s is not between %llu and %llu", field,
                              kn_record_shown(text), text, (unsigned long long)min, (unsigned long long)max);
    *out = v;
    return KN_OK;
}

size_t kn_number_span(const char *p, size_t len) {
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

static int parse_cfg(const struct kn_reader *r, const char *field, const char *text, float *out) {
    size_t len = strlen(text);
    if (len == 0 || kn_number_span(text, len) != len)
        return kn_record_fail(r, KN_EPARSE, "%s: \"%.*s\" is not a number", field, kn_record_shown(text),
                              text);
    float v = strtof(text, NULL);
    if (!(v >= (float)KN_CFG_MIN && v <= (float)KN_CFG_MAX))
        return kn_record_fail(r, KN_EINVAL, "%s: %.*s is not between %g and %g", field, kn_record_shown(text),
                              text, KN_CFG_MIN, KN_CFG_MAX);
    *out = v;
    return KN_OK;
}

int kn_record_give(const struct kn_reader *r, struct kn_record *rec, enum kn_record_field field,
                   const char *name) {
    static const uint32_t size_bits = 1u << KN_IN_WIDTH | 1u << KN_IN_HEIGHT,
                          image_bits = 1u << KN_IN_N_ITER | 1u << KN_IN_BATCH_SIZE;
    uint32_t bit = 1u << field, against = bit;
    if (field == KN_IN_SIZE) against |= size_bits;
    if (bit & size_bits) against |= 1u << KN_IN_SIZE;
    if (field == KN_IN_IMAGES) against |= image_bits;
    if (bit & image_bits) against |= 1u << KN_IN_IMAGES;
    if (rec->given & against) return kn_record_fail(r, KN_EPARSE, "%s: given twice", name);
    rec->given |= bit;
    return KN_OK;
}

static int set_string(const struct kn_reader *r, char **out, const char *text) {
    char *copy = strdup(text);
    if (!copy) return kn_record_no_memory(r);
    free(*out);
    *out = copy;
    return KN_OK;
}

int kn_record_set(const struct kn_reader *r, struct kn_record *rec, enum kn_record_field field,
                  const char *name, const char *text) {
    struct kn_task *t = &rec->t;
    uint64_t v = 0;
    int rc = kn_record_give(r, rec, field, name);
    if (rc) return rc;
    switch (field) {
    case KN_IN_PROMPT:
        return set_string(r, &t->prompt, text);
    case KN_IN_NEGATIVE:
        rc = set_string(r, &t->negative, text);
        if (rc == KN_OK) t->set |= KN_SET_NEGATIVE;
        return rc;
    case KN_IN_SEED:
        if (strncmp(text, "-1", 2) == 0 && span_without_zeros(text) == 2)
            return KN_OK; /* A1111's "a random one": as if nothing was said */
        if (strcasecmp(text, "each") == 0) {
            t->set |= KN_SET_SEED_EACH;
            return KN_OK;
        }
        rc = parse_whole(r, name, text, 0, UINT64_MAX, &t->seed);
        if (rc == KN_OK) t->set |= KN_SET_SEED;
        return rc;
    case KN_IN_SAMPLER:
        if (kn_sampler_parse(text, &t->sampler, r->err)) return kn_record_fail_in(r, name);
        t->set |= KN_SET_SAMPLER;
        return KN_OK;
    case KN_IN_SCHEDULE:
        if (kn_schedule_parse(text, &t->schedule, r->err)) return kn_record_fail_in(r, name);
        t->set |= KN_SET_SCHEDULE;
        return KN_OK;
    case KN_IN_STEPS:
        rc = parse_whole(r, name, text, KN_STEPS_MIN, KN_STEPS_MAX, &v);
        t->steps = (uint32_t)v;
        if (rc == KN_OK) t->set |= KN_SET_STEPS;
        return rc;
    case KN_IN_CFG:
        rc = parse_cfg(r, name, text, &t->cfg);
        if (rc == KN_OK) t->set |= KN_SET_CFG;
        return rc;
    case KN_IN_SIZE:
        if (kn_size_parse(text, &t->width, &t->height, r->err)) return kn_record_fail_in(r, name);
        t->set |= KN_SET_SIZE;
        return KN_OK;
    case KN_IN_WIDTH:
        rc = parse_whole(r, name, text, KN_SIZE_MIN, KN_SIZE_MAX, &v);
        t->width = (uint32_t)v;
        return rc;
    case KN_IN_HEIGHT:
        rc = parse_whole(r, name, text, KN_SIZE_MIN, KN_SIZE_MAX, &v);
        t->height = (uint32_t)v;
        return rc;
    case KN_IN_MODEL:
        if (text[0] == '\0') return kn_record_fail(r, KN_EINVAL, "%s: is empty", name);
        rc = set_string(r, &t->model, text);
        if (rc == KN_OK) t->set |= KN_SET_MODEL;
        return rc;
    case KN_IN_IMAGES:
        return parse_whole(r, name, text, 1, KN_IMAGES_MAX, &rec->images);
    case KN_IN_N_ITER:
        return parse_whole(r, name, text, 1, KN_IMAGES_MAX, &rec->n_iter);
    case KN_IN_BATCH_SIZE:
        return parse_whole(r, name, text, 1, KN_IMAGES_MAX, &rec->batch_size);
    case KN_IN_EXTRA:
        return set_string(r, &t->extra, text);
    case KN_IN_UNKNOWN:
    case KN_IN_UNSUPPORTED:
        break;
    }
    assert(false); /* not a field: the reader asked for the name first */
    return KN_EINTERNAL;
}

int kn_record_set_extra(const struct kn_reader *r, struct kn_record *rec, const char *text) {
    rec->given |= 1u << KN_IN_EXTRA;
    return set_string(r, &rec->t.extra, text);
}

int kn_record_finish(const struct kn_reader *r, struct kn_record *rec) {
    static const uint32_t count_bits = 1u << KN_IN_IMAGES | 1u << KN_IN_N_ITER | 1u << KN_IN_BATCH_SIZE;
    struct kn_task *t = &rec->t;
    bool width = rec->given & 1u << KN_IN_WIDTH, height = rec->given & 1u << KN_IN_HEIGHT;
    uint64_t n = rec->images * rec->n_iter * rec->batch_size; /* at most 1e10: no overflow */
    int rc = KN_OK;
    t->line = (uint32_t)r->line;
    if (!t->prompt) {
        rc = kn_record_fail(r, KN_EPARSE, "prompt: missing");
    } else {
        if (width && height)
            t->set |= KN_SET_SIZE; /* one alone: the other is yet to come from the defaults */
        if (rec->given & count_bits) t->set |= KN_SET_IMAGES;
        rc = kn_task_check(t, r->err);
        if (rc) kn_record_fail_in(r, NULL);
    }
    if (rc == KN_OK && n > KN_IMAGES_MAX)
        rc = kn_record_fail(r, KN_EINVAL, "images: n_iter times batch_size is more than %d", KN_IMAGES_MAX);
    if (rc == KN_OK && t->set & KN_SET_SEED && n - 1 > UINT64_MAX - t->seed)
        rc = kn_record_fail(r, KN_EINVAL, "seed: %llu images go past %llu", (unsigned long long)n,
                            (unsigned long long)UINT64_MAX);
    if (rc == KN_OK) {
        rc = kn_tasks_reserve(r->out, n, r->err);
        if (rc) kn_record_fail_in(r, NULL);
    }
    if (rc == KN_OK && kn_tasks_put(r->out, t, NULL)) rc = kn_record_no_memory(r);
    for (uint64_t i = 1; rc == KN_OK && i < n; i++) {
        struct kn_task *to = &r->out->v[r->out->count];
        *to = to[-1];
        to->seed++; /* with no seed set: the offset from the seed that the task will get */
        r->out->count++;
    }
    if (r->input && r->out->count % KN_READER_REST == 0) kn_spill_rest(r->input);
    kn_task_fini(t);
    return rc;
}
