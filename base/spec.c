/* The render spec; the contract is spec.h. */
#include "base/spec.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <json-c/json.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "base/utf8.h"

/* How much of a person's own text is repeated in a message. */
#define SHOWN_MAX 60
#define FOLDED_MAX 40

struct spec_name {
    int value;
    const char *name;
};

/* Every accepted spelling; the folded forms of these are compared ("k_euler_a", "euler a" and "Euler-A" fold
 * alike). */
static const struct spec_name sampler_names[] = {
#define SAMPLER_NAMES(id, value, a1111, comfy, diffusers, karras, automatic)                                 \
    {KN_SAMPLER_##id, a1111}, {KN_SAMPLER_##id, comfy}, {KN_SAMPLER_##id, diffusers},
    KN_SAMPLER_TABLE(SAMPLER_NAMES)
#undef SAMPLER_NAMES
        {KN_SAMPLER_PNDM, "PLMS"}, /* A1111's and the LDM paper code's name for it */
};

/* "uniform" is what A1111 calls the model's own spacing. */
static const struct spec_name schedule_names[] = {
    {KN_SCHEDULE_NORMAL, "normal"}, {KN_SCHEDULE_NORMAL, "uniform"}, {KN_SCHEDULE_KARRAS, "karras"}};

const enum kn_sampler kn_samplers[KN_SAMPLER_COUNT] = {
#define SAMPLER_VALUE(id, value, a1111, comfy, diffusers, karras, automatic) KN_SAMPLER_##id,
    KN_SAMPLER_TABLE(SAMPLER_VALUE)
#undef SAMPLER_VALUE
};

const char *kn_sampler_name(enum kn_sampler s) {
    switch (s) {
#define SAMPLER_CASE(id, value, a1111, comfy, diffusers, karras, automatic)                                  \
    case KN_SAMPLER_##id:                                                                                    \
        return a1111;
        KN_SAMPLER_TABLE(SAMPLER_CASE)
#undef SAMPLER_CASE
    case KN_SAMPLER_UNSET:
        break;
    }
    return "?";
}

const char *kn_schedule_name(enum kn_schedule s) {
    switch (s) {
    case KN_SCHEDULE_NORMAL:
        return "normal";
    case KN_SCHEDULE_KARRAS:
        return "karras";
    case KN_SCHEDULE_UNSET:
        break;
    }
    return "?";
}

const char *kn_sampler_automatic(enum kn_sampler s) {
    switch (s) {
#define SAMPLER_CASE(id, value, a1111, comfy, diffusers, karras, automatic)                                  \
    case KN_SAMPLER_##id:                                                                                    \
        return automatic;
        KN_SAMPLER_TABLE(SAMPLER_CASE)
#undef SAMPLER_CASE
    case KN_SAMPLER_UNSET:
        break;
    }
    return NULL;
}

static enum kn_karras karras_of(enum kn_sampler s) {
    switch (s) {
#define SAMPLER_CASE(id, value, a1111, comfy, diffusers, karras, automatic)                                  \
    case KN_SAMPLER_##id:                                                                                    \
        return KN_KARRAS_##karras;
        KN_SAMPLER_TABLE(SAMPLER_CASE)
#undef SAMPLER_CASE
    case KN_SAMPLER_UNSET:
        break;
    }
    return KN_KARRAS_NONE;
}

bool kn_schedule_fits(enum kn_sampler s, enum kn_schedule sch) {
    return sch != KN_SCHEDULE_KARRAS || karras_of(s) != KN_KARRAS_NONE;
}

bool kn_sampler_reads_karras(enum kn_sampler s) {
    return karras_of(s) == KN_KARRAS_OPTION;
}

/* Lower case, without spaces, '_' and '-', '+' as 'p'. False when it does not fit: then it is no name of
 * ours. */
static bool fold(const char *text, char out[FOLDED_MAX]) {
    size_t n = 0;
    for (; *text; text++) {
        if (*text == ' ' || *text == '_' || *text == '-') continue;
        if (n + 1 >= FOLDED_MAX) return false;
        out[n++] = *text == '+' ? 'p' : (char)tolower((unsigned char)*text);
    }
    out[n] = '\0';
    return true;
}

static int name_parse(const char *text, const struct spec_name *names, size_t count) {
    char want[FOLDED_MAX], have[FOLDED_MAX];
    if (!fold(text, want)) return 0;
    for (size_t i = 0; i < count; i++) {
        if (fold(names[i].name, have) && strcmp(want, have) == 0) return names[i].value;
    }
    return 0;
}

static int shown(const char *text) {
    return (int)kn_utf8_cut(text, strlen(text), SHOWN_MAX);
}

int kn_sampler_parse(const char *text, enum kn_sampler *out, struct kn_err *err) {
    size_t count = sizeof sampler_names / sizeof *sampler_names;
    int value = name_parse(text, sampler_names, count);
    /* k-diffusion's "k_euler_a" and ComfyUI-era "sample_euler" prefixes. */
    if (!value && strncasecmp(text, "k_", 2) == 0) value = name_parse(text + 2, sampler_names, count);
    if (value) {
        *out = (enum kn_sampler)value;
        return KN_OK;
    }
    size_t len = strlen(text);
    if (len > 7 && strcasecmp(text + len - 7, " karras") == 0) {
        /* A1111 before 1.9 had the schedule in the sampler's name. */
        char head[FOLDED_MAX];
        snprintf(head, sizeof head, "%.*s", (int)(len - 7), text);
        if (name_parse(head, sampler_names, count))
            return kn_err_set(err, KN_EINVAL,
                              "\"%s\" is the sampler \"%s\" with the schedule \"karras\": name both", text,
                              head);
    }
    const char *names[sizeof sampler_names / sizeof *sampler_names + 1] = {0};
    for (size_t i = 0; i < count; i++) names[i] = sampler_names[i].name;
    const char *near = kn_suggest(text, names);
    return kn_err_set(err, KN_EINVAL, "\"%.*s\" is not one of " KN_SAMPLER_LIST "%s%s%s", shown(text), text,
                      near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
}

int kn_schedule_parse(const char *text, enum kn_schedule *out, struct kn_err *err) {
    int value = name_parse(text, schedule_names, sizeof schedule_names / sizeof *schedule_names);
    if (value) {
        *out = (enum kn_schedule)value;
        return KN_OK;
    }
    static const char *const names[] = {"normal", "karras", NULL};
    const char *near = kn_suggest(text, names);
    return kn_err_set(err, KN_EINVAL, "\"%.*s\" is not one of normal, karras%s%s%s", shown(text), text,
                      near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
}

/* Edit distance with transpositions of neighbours (optimal string alignment), case ignored. */
static size_t edit_distance(const char *a, size_t la, const char *b, size_t lb) {
    size_t rows[3][FOLDED_MAX + 1];
    size_t *before = rows[0], *above = rows[1], *row = rows[2];
    for (size_t j = 0; j <= lb; j++) above[j] = j;
    for (size_t i = 1; i <= la; i++) {
        row[0] = i;
        int ca = tolower((unsigned char)a[i - 1]);
        for (size_t j = 1; j <= lb; j++) {
            int cb = tolower((unsigned char)b[j - 1]);
            size_t best = above[j - 1] + (ca != cb);
            if (above[j] + 1 < best) best = above[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            if (i > 1 && j > 1 && ca == tolower((unsigned char)b[j - 2]) &&
                tolower((unsigned char)a[i - 2]) == cb && before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            row[j] = best;
        }
        size_t *old = before;
        before = above;
        above = row;
        row = old;
    }
    return above[lb];
}

const char *kn_suggest(const char *word, const char *const *names) {
    size_t len = strlen(word);
    if (len < 2 || len > FOLDED_MAX) return NULL;
    size_t near = len <= 4 ? 1 : len <= 8 ? 2 : 3;
    const char *found = NULL;
    for (; *names; names++) {
        size_t ln = strlen(*names);
        if (ln > FOLDED_MAX || ln > len + near || len > ln + near) continue;
        size_t d = edit_distance(word, len, *names, ln);
        if (d <= near && d < ln) {
            found = *names;
            if (d == 0) break;
            near = d - 1; /* from now on only a nearer one; the first of equals stays */
        }
    }
    return found;
}

int kn_size_parse(const char *text, uint32_t *width, uint32_t *height, struct kn_err *err) {
    uint32_t v[2] = {0, 0};
    const char *p = text;
    for (int i = 0; i < 2; i++) {
        int digits = 0;
        for (; *p >= '0' && *p <= '9' && digits < 6; p++, digits++) v[i] = v[i] * 10 + (uint32_t)(*p - '0');
        bool ends = i == 0 ? *p == 'x' || *p == 'X' : *p == '\0';
        if (digits == 0 || !ends)
            return kn_err_set(err, KN_EINVAL, "\"%.*s\" is not WIDTHxHEIGHT, as in 512x768", shown(text),
                              text);
        p++;
    }
    *width = v[0];
    *height = v[1];
    return KN_OK;
}

static int check_text(const char *field, const char *text, size_t max, struct kn_err *err) {
    size_t len = strlen(text);
    if (len > max) return kn_err_set(err, KN_ELIMIT, "%s: %zu bytes are more than %zu", field, len, max);
    size_t good = kn_utf8_span(text, len);
    if (good < len) return kn_err_set(err, KN_EINVAL, "%s: not UTF-8 at byte %zu", field, good + 1);
    return KN_OK;
}

static int check_side(const char *field, uint32_t v, uint32_t max, uint32_t multiple, struct kn_err *err) {
    if (v < KN_SIZE_MIN || v > max)
        return kn_err_set(err, KN_EINVAL, "%s: %u is not between %d and %u", field, v, KN_SIZE_MIN, max);
    if (v % multiple != 0)
        return kn_err_set(err, KN_EINVAL, "%s: %u is not a multiple of %u", field, v, multiple);
    return KN_OK;
}

static int check_size(const struct kn_task *t, uint32_t max, uint32_t multiple, struct kn_err *err) {
    int rc = check_side("width", t->width, max, multiple, err);
    return rc ? rc : check_side("height", t->height, max, multiple, err);
}

int kn_task_check(const struct kn_task *t, struct kn_err *err) {
    int rc = check_text("prompt", t->prompt, KN_PROMPT_BYTES_MAX, err);
    if (rc == KN_OK && t->set & KN_SET_NEGATIVE)
        rc = check_text("negative", t->negative, KN_PROMPT_BYTES_MAX, err);
    if (rc == KN_OK && t->extra) rc = check_text("extra", t->extra, KN_EXTRA_BYTES_MAX, err);
    if (rc == KN_OK && t->set & KN_SET_MODEL && t->model)
        rc = check_text("model", t->model, KN_PATH_MAX - 1, err);
    if (rc) return rc;
    if (t->set & KN_SET_STEPS && (t->steps < KN_STEPS_MIN || t->steps > KN_STEPS_MAX))
        return kn_err_set(err, KN_EINVAL, "steps: %u is not between %d and %d", t->steps, KN_STEPS_MIN,
                          KN_STEPS_MAX);
    if (t->set & KN_SET_CFG &&
        !(t->cfg >= (float)KN_CFG_MIN && t->cfg <= (float)KN_CFG_MAX)) /* NaN fails too */
        return kn_err_set(err, KN_EINVAL, "cfg: %g is not between %g and %g", (double)t->cfg, KN_CFG_MIN,
                          KN_CFG_MAX);
    if (t->set & KN_SET_SAMPLER && kn_sampler_name(t->sampler)[0] == '?')
        return kn_err_set(err, KN_EINVAL, "sampler: %d is not a sampler", (int)t->sampler);
    if (t->set & KN_SET_SCHEDULE && kn_schedule_name(t->schedule)[0] == '?')
        return kn_err_set(err, KN_EINVAL, "schedule: %d is not a schedule", (int)t->schedule);
    if (t->set & KN_SET_SAMPLER && t->set & KN_SET_SCHEDULE && !kn_schedule_fits(t->sampler, t->schedule))
        return kn_err_set(err, KN_EINVAL, "schedule: %s means nothing with the sampler %s",
                          kn_schedule_name(t->schedule), kn_sampler_name(t->sampler));
    if (t->set & KN_SET_SIZE) return check_size(t, KN_SIZE_MAX, KN_SIZE_MULTIPLE, err);
    if (t->width) rc = check_side("width", t->width, KN_SIZE_MAX, KN_SIZE_MULTIPLE, err);
    if (rc == KN_OK && t->height) rc = check_side("height", t->height, KN_SIZE_MAX, KN_SIZE_MULTIPLE, err);
    return rc;
}

uint64_t kn_model_need(const struct kn_model_info *m, uint32_t width, uint32_t height, uint32_t images) {
    double pixels = (double)m->defaults.width * m->defaults.height;
    if (!m->memory_weights || pixels <= 0) return 0;
    return KN_PROGRAM_BYTES + m->memory_weights +
           (uint64_t)((double)m->memory_image * images * ((double)width * height / pixels));
}

static int no_default_sampler(const struct kn_model_info *m, struct kn_err *err) {
    return kn_err_set(
        err, KN_EUNSUPPORTED,
        "sampler: the model %s names the scheduler %s, which kiln does not have; say --sampler with "
        "one of " KN_SAMPLER_LIST
        " (it renders as diffusers' class of that name does from this "
        "folder's settings)",
        m->name, m->scheduler[0] ? m->scheduler : "of an unknown class");
}

/* The model's default belongs to its default sampler. Another one follows the Karras schedule only where
 * diffusers' class would: an option that the class does not have is dropped by its from_config(). */
static enum kn_schedule default_schedule(const struct kn_defaults *d, enum kn_sampler sampler) {
    if (sampler == d->sampler && kn_schedule_fits(sampler, d->schedule)) return d->schedule;
    bool karras = d->karras || d->schedule == KN_SCHEDULE_KARRAS;
    return karras && kn_sampler_reads_karras(sampler) ? KN_SCHEDULE_KARRAS : KN_SCHEDULE_NORMAL;
}

int kn_task_resolve(struct kn_task *t, const struct kn_model_info *m, struct kn_err *err) {
    const struct kn_defaults *d = &m->defaults;
    if (!(t->set & KN_SET_SEED)) return kn_err_set(err, KN_EINVAL, "seed: not set");
    if (!(t->set & KN_SET_SAMPLER)) {
        if (d->sampler == KN_SAMPLER_UNSET) return no_default_sampler(m, err);
        t->sampler = d->sampler;
    }
    if (!(t->set & KN_SET_SCHEDULE)) t->schedule = default_schedule(d, t->sampler);
    if (!(t->set & KN_SET_STEPS)) t->steps = d->steps;
    if (!(t->set & KN_SET_CFG)) t->cfg = d->cfg;
    if (!(t->set & KN_SET_SIZE)) {
        if (!t->width) t->width = d->width;
        if (!t->height) t->height = d->height;
    }
    t->set |= KN_SET_ALL; /* an unset negative prompt is "" already, an unset model is m */
    int rc = kn_task_check(t, err);
    if (rc) return rc;
    uint32_t max = m->size_max ? m->size_max : KN_SIZE_MAX;
    uint32_t multiple = m->size_multiple ? m->size_multiple : KN_SIZE_MULTIPLE;
    rc = check_size(t, max, multiple, err);
    if (rc && err) {
        char text[KN_NAME_MAX + 40];
        snprintf(text, sizeof text, " (model %s)", m->name);
        size_t len = strlen(err->text), more = strlen(text);
        if (len + more < sizeof err->text) memcpy(err->text + len, text, more + 1);
    }
    return rc;
}

void kn_task_key(const struct kn_task *t, const uint8_t model_sha256[KN_SHA256_BYTES],
                 uint8_t out[KN_SHA256_BYTES]) {
    assert((t->set & KN_SET_ALL) == KN_SET_ALL);
    char line[256], model[KN_SHA256_HEX];
    kn_hex(model_sha256, KN_SHA256_BYTES, model);
    float cfg = t->cfg + 0.0f; /* -0 renders as 0 does */
    uint32_t cfg_bits;
    memcpy(&cfg_bits, &cfg, sizeof cfg_bits);

    struct kn_sha256 *h = kn_sha256_create();
    assert(h);
    int n = snprintf(line, sizeof line, "kiln-key=1\nmodel=%s\nprompt=%zu:", model, strlen(t->prompt));
    kn_sha256_update(h, line, (size_t)n);
    kn_sha256_update(h, t->prompt, strlen(t->prompt));
    n = snprintf(line, sizeof line, "\nnegative=%zu:", strlen(t->negative));
    kn_sha256_update(h, line, (size_t)n);
    kn_sha256_update(h, t->negative, strlen(t->negative));
    n = snprintf(line, sizeof line, "\nseed=%llu\nsampler=%d\nschedule=%d\nsteps=%u\ncfg=%08x\nsize=%ux%u\n",
                 (unsigned long long)t->seed, (int)t->sampler, (int)t->schedule, t->steps, cfg_bits, t->width,
                 t->height);
    kn_sha256_update(h, line, (size_t)n);
    kn_sha256_final(h, out);
}

/* The fewest digits that read back as the same float: 7, 7.5, 0.1. */
static void float_text(float v, char *out, size_t out_max) {
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(out, out_max, "%.*g", digits, (double)v);
        if (strtof(out, NULL) == v) return;
    }
}

/* ", Name: value"; a value that would break the line apart becomes a JSON string, as A1111 does it. */
static int append_setting(struct kn_buf *out, const char *name, const char *value) {
    int rc = kn_buf_appendf(out, ", %s: ", name);
    if (rc) return rc;
    if (!strpbrk(value, ",:\n")) return kn_buf_appends(out, value);
    json_object *s = json_object_new_string(value);
    const char *quoted =
        s ? json_object_to_json_string_ext(s, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE) : NULL;
    rc = quoted ? kn_buf_appends(out, quoted) : KN_ENOMEM;
    json_object_put(s);
    return rc;
}

int kn_task_parameters(const struct kn_task *t, const struct kn_model_info *m, const char *version,
                       struct kn_buf *out) {
    static const char *const schedule_labels[] = {"?", "Normal", "Karras"}; /* as A1111 labels them */
    const char *schedule = t->schedule <= KN_SCHEDULE_KARRAS ? schedule_labels[t->schedule] : "?";
    char cfg[32], hash[KN_SHA256_HEX];
    float_text(t->cfg, cfg, sizeof cfg);
    kn_hex(m->sha256, KN_SHA256_BYTES, hash);
    hash[10] = '\0';

    size_t before = out->len;
    int rc = kn_buf_appends(out, t->prompt);
    if (rc == KN_OK && t->negative[0]) rc = kn_buf_appendf(out, "\nNegative prompt: %s", t->negative);
    if (rc == KN_OK)
        rc = kn_buf_appendf(
            out, "\nSteps: %u, Sampler: %s, Schedule type: %s, CFG scale: %s, Seed: %llu, Size: %ux%u",
            t->steps, kn_sampler_name(t->sampler), schedule, cfg, (unsigned long long)t->seed, t->width,
            t->height);
    if (rc == KN_OK) rc = append_setting(out, "Model hash", hash);
    if (rc == KN_OK) rc = append_setting(out, "Model", m->name);
    if (rc == KN_OK) rc = append_setting(out, "Version", version);
    if (rc && out->data) {
        out->len = before;
        out->data[before] = '\0';
    }
    return rc;
}
