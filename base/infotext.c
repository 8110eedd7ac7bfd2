/* The line of settings that ends a block of generation data; the contract is infotext.h.
 *
 * Three kinds of keys: those of the table `settings` are kiln's own; those of `harmless` say where a
 * picture came from and change none, they are kept in `extra`; any other key (Hires upscale, VAE, Lora
 * hashes, what extensions add) may change the picture, and kiln does not know how: it is refused. */
#include "base/infotext.h"

#include <ctype.h>
#include <json-c/json.h>
#include <string.h>
#include <strings.h>

#include "base/utf8.h"

#define PAIRS_MIN 3 /* A1111 takes a line with fewer for text */

static const struct {
    const char *key; /* folded, see kn_record_fold() */
    enum kn_record_field field;
} settings[] = {
    {"steps", KN_IN_STEPS},   {"sampler", KN_IN_SAMPLER}, {"schedule_type", KN_IN_SCHEDULE},
    {"cfg_scale", KN_IN_CFG}, {"seed", KN_IN_SEED},       {"size", KN_IN_SIZE},
    {"model", KN_IN_MODEL},
};

static const char *const harmless[] = {
    "app",        "batch_pos",         "batch_size", "civitai_metadata", "created_date", "date",
    "model_hash", "negative_template", "software",   "template",         "user",         "version",
};

struct pair {
    const char *key, *key_end, *value, *value_end; /* a value in quotes: with them */
};

static const char *skip_blanks(const char *p, const char *end) {
    while (p < end && kn_is_blank(*p)) p++;
    return p;
}

/* Cuts the next "Key: value" off; *at moves behind its comma. False: there is none at *at. A value in
 * quotes is a JSON string; one in brackets goes to the bracket that closes it; any other ends at the next
 * comma. */
static bool pair_next(const char **at, const char *end, struct pair *out) {
    const char *p = skip_blanks(*at, end), *why, *stop = NULL;
    out->key = p;
    while (p < end && (isalnum((unsigned char)*p) || strchr("_ -/", *p))) p++;
    out->key_end = p;
    if (p == end || *p != ':' || p - out->key < 2 || !isalnum((unsigned char)*out->key)) return false;
    p = skip_blanks(p + 1, end);
    out->value = p;
    if (p < end && *p == '"') {
        stop = kn_json_string_end(p, end, &why);
        if (!stop) return false;
    } else if (p < end && (*p == '{' || *p == '[')) {
        stop = kn_json_nest_end(p, end, &why);
    }
    if (stop && skip_blanks(stop, end) != end && *skip_blanks(stop, end) != ',') {
        if (*p == '"') return false;
        stop = NULL; /* brackets within a text */
    }
    if (!stop) stop = memchr(p, ',', (size_t)(end - p));
    if (!stop) stop = end;
    p = skip_blanks(stop, end);
    out->value_end = stop;
    while (out->value_end > out->value && kn_is_blank(out->value_end[-1])) out->value_end--;
    *at = p < end ? p + 1 : p;
    return true;
}

static bool is_steps(const struct pair *p) {
    if (p->key_end - p->key != 5 || memcmp(p->key, "Steps", 5) != 0 || p->value == p->value_end) return false;
    for (const char *v = p->value; v < p->value_end; v++) {
        if (!isdigit((unsigned char)*v)) return false;
    }
    return true;
}

bool kn_is_settings_line(const char *p, const char *end) {
    size_t count = 0;
    bool steps = false;
    struct pair pair;
    while (skip_blanks(p, end) < end) {
        if (!pair_next(&p, end, &pair)) return false;
        steps = steps || is_steps(&pair);
        if (steps && count == 0) return true; /* it begins as A1111 begins it: a mistake further on is told */
        count++;
    }
    return steps && count >= PAIRS_MIN;
}

static int set_sampler(const struct kn_reader *r, struct kn_record *rec, const char *key, char *text,
                       bool *karras) {
    static const char tail[] = " Karras";
    struct kn_err ignored;
    enum kn_sampler sampler;
    size_t len = strlen(text), head = len - (sizeof tail - 1);
    /* A1111 before 1.9 had the schedule in the sampler's name. */
    *karras = len >= sizeof tail && strcasecmp(text + head, tail) == 0;
    if (*karras) {
        text[head] = '\0';
        *karras = kn_sampler_parse(text, &sampler, &ignored) == KN_OK;
        if (!*karras) text[head] = ' ';
    }
    return kn_record_set(r, rec, KN_IN_SAMPLER, key, text);
}

/* The schedule: the one that is named; with "Automatic" the sampler's own in A1111; where none is
 * named, the one that A1111 used when it did not write it: the model's own spacing. */
static int set_schedule(const struct kn_reader *r, struct kn_record *rec, const char *named, bool karras) {
    static const char key[] = "Schedule type";
    if (!(rec->t.set & KN_SET_SAMPLER) && !named) return KN_OK;
    if (karras && (!named || strcasecmp(named, "automatic") == 0)) named = "karras";
    if (!named) named = "normal";
    if (strcasecmp(named, "automatic") == 0) {
        named = rec->t.set & KN_SET_SAMPLER ? kn_sampler_automatic(rec->t.sampler) : NULL;
        if (!named)
            return kn_record_fail(r, KN_EUNSUPPORTED, "%s: Automatic, with the sampler %s: name the schedule",
                                  key,
                                  rec->t.set & KN_SET_SAMPLER ? kn_sampler_name(rec->t.sampler) : "unnamed");
    }
    return kn_record_set(r, rec, KN_IN_SCHEDULE, key, named);
}

static int add_extra(const struct kn_reader *r, json_object **extra, const char *key, const char *text) {
    if (!*extra) *extra = json_object_new_object();
    if (!*extra) return kn_record_no_memory(r);
    if (json_object_object_get_ex(*extra, key, NULL))
        return kn_record_fail(r, KN_EPARSE, "%s: given twice", key);
    json_object *value = json_object_new_string(text);
    if (value && json_object_object_add(*extra, key, value) == 0) return KN_OK;
    json_object_put(value);
    return kn_record_no_memory(r);
}

/* One pair whose value's text is `text`. The schedule is left in `schedule` for later. */
static int take(const struct kn_reader *r, struct kn_record *rec, const char *key, char *text,
                struct kn_buf *schedule, bool *karras, json_object **extra) {
    char folded[KN_NAME_MAX + 1];
    if (kn_record_fold(key, folded)) {
        for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
            if (strcmp(folded, settings[i].key) != 0) continue;
            if (settings[i].field == KN_IN_SAMPLER) return set_sampler(r, rec, key, text, karras);
            if (settings[i].field != KN_IN_SCHEDULE)
                return kn_record_set(r, rec, settings[i].field, key, text);
            if (schedule->len > 0) return kn_record_fail(r, KN_EPARSE, "%s: given twice", key);
            int rc = kn_buf_appends(schedule, text);
            return rc ? kn_record_fail(r, rc, "%s: %s", key, kn_err_words(rc)) : KN_OK;
        }
        for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++) {
            if (strcmp(folded, harmless[i]) == 0) return add_extra(r, extra, key, text);
        }
        if (strcmp(folded, "clip_skip") == 0 && strcmp(text, "1") == 0) return add_extra(r, extra, key, text);
    }
    return kn_record_fail(r, KN_EUNSUPPORTED,
                          "%.*s: not supported; take it out of the line to render without it",
                          kn_record_shown(key), key);
}

int kn_settings_line_read(const struct kn_reader *r, struct kn_record *rec, const char *p, const char *end) {
    struct kn_buf key, text, schedule;
    kn_buf_init(&key, KN_INPUT_BYTES_MAX);
    kn_buf_init(&text, KN_INPUT_BYTES_MAX);
    kn_buf_init(&schedule, KN_INPUT_BYTES_MAX);
    json_object *extra = NULL;
    size_t count = 0;
    bool karras = false;
    int rc = KN_OK;
    while (rc == KN_OK && skip_blanks(p, end) < end) {
        struct pair pair;
        const char *from = skip_blanks(p, end);
        if (!pair_next(&p, end, &pair)) {
            size_t len = kn_utf8_cut(from, (size_t)(end - from), KN_SHOWN_MAX);
            rc = kn_record_fail(r, KN_EPARSE, "\"%.*s\" is not Key: value, as a line of settings has them",
                                (int)len, from);
            break;
        }
        count++;
        kn_buf_clear(&key);
        kn_buf_clear(&text);
        rc = kn_buf_append(&key, pair.key, (size_t)(pair.key_end - pair.key));
        if (rc)
            kn_record_fail(r, rc, "%s", kn_err_words(rc));
        else if (pair.value < pair.value_end && *pair.value == '"')
            rc = kn_json_text(r, pair.value, pair.value_end, &text);
        else if ((rc = kn_buf_append(&text, pair.value, (size_t)(pair.value_end - pair.value))))
            kn_record_fail(r, rc, "%s", kn_err_words(rc));
        if (rc == KN_OK) rc = take(r, rec, key.data, text.data, &schedule, &karras, &extra);
    }
    if (rc == KN_OK && count < PAIRS_MIN)
        rc = kn_record_fail(r, KN_EPARSE,
                            "a line of settings has %d at least, as in Steps: 20, Sampler: Euler, Seed: 1",
                            PAIRS_MIN);
    if (rc == KN_OK) rc = set_schedule(r, rec, schedule.len > 0 ? schedule.data : NULL, karras);
    if (rc == KN_OK && extra) {
        const char *s =
            json_object_to_json_string_ext(extra, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
        rc = s ? kn_record_set(r, rec, KN_IN_EXTRA, "extra", s) : kn_record_no_memory(r);
    }
    json_object_put(extra);
    kn_buf_fini(&key);
    kn_buf_fini(&text);
    kn_buf_fini(&schedule);
    return rc;
}
