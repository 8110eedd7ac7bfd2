/* See options.h. */
#include "base/options.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/spec.h"

#define HELP_INDENT 29
#define NAME_MAX_SHOWN 64

static bool accepts(const struct kn_options *os, const struct kn_option *o) {
    return (os->groups & o->groups) != 0;
}

/* ---- values ---- */

/* Digits with nothing before them but a minus, and nothing behind. */
int kn_option_number(const char *text, int64_t min, uint64_t max, uint64_t *out, struct kn_err *err) {
    bool negative = text[0] == '-';
    const char *digits = text + negative;
    if (!digits[0] || digits[strspn(digits, "0123456789")])
        return kn_err_set(err, KN_EINVAL, "\"%.60s\" is not a whole number", text);
    errno = 0;
    uint64_t v = strtoull(digits, NULL, 10);
    bool fits = errno == 0;
    if (negative)
        fits = fits && v <= INT64_MAX && -(int64_t)v >= min;
    else
        fits = fits && v <= max && (min < 0 || v >= (uint64_t)min);
    if (!fits)
        return kn_err_set(err, KN_EINVAL, "%.60s is not between %lld and %llu", text, (long long)min,
                          (unsigned long long)max);
    *out = negative ? (uint64_t) - (int64_t)v : v;
    return KN_OK;
}

static int take_number(const struct kn_option *o, void *target, const char *value, struct kn_err *err) {
    uint64_t v;
    assert(value); /* an option of a kind that has a value names it in `arg` */
    int rc = kn_option_number(value, o->min, o->max, &v, err);
    if (rc) return rc;
    if (o->kind == KN_OPTION_INT)
        *(int *)target = (int)(int64_t)v;
    else if (o->kind == KN_OPTION_U32)
        *(uint32_t *)target = (uint32_t)v;
    else
        *(uint64_t *)target = v;
    return KN_OK;
}

static int take_choice(const struct kn_option *o, void *target, const char *value, struct kn_err *err) {
    assert(value);
    char list[256] = "";
    size_t len = 0;
    for (unsigned i = 0; o->choices[i]; i++) {
        if (strcmp(value, o->choices[i]) == 0) {
            memcpy(target, &i, sizeof i);
            return KN_OK;
        }
        if (len < sizeof list)
            len += (size_t)snprintf(list + len, sizeof list - len, "%s%s", i ? ", " : "", o->choices[i]);
    }
    return kn_err_set(err, KN_EINVAL, "%.64s is none of %s", value, list);
}

static int take_text(const struct kn_option *o, char *into, const char *value, struct kn_err *err) {
    int rc = o->check ? o->check(value, err) : KN_OK;
    if (rc) return rc;
    const char **target = (const char **)(void *)(into + o->offset);
    if (o->kind == KN_OPTION_LIST) {
        size_t *count = (size_t *)(void *)(into + o->count_offset);
        if (*count >= o->max) return kn_err_set(err, KN_ELIMIT, "more than %llu", (unsigned long long)o->max);
        target += (*count)++;
    }
    *target = value;
    return KN_OK;
}

/* Puts the value where it belongs; 1: the option stops the parsing. */
static int take(const struct kn_option *o, char *into, char *value, struct kn_err *err) {
    void *target = into + o->offset;
    int rc = KN_OK;
    switch (o->kind) {
    case KN_OPTION_FLAG:
        *(bool *)target = true;
        break;
    case KN_OPTION_STOP:
        *(bool *)target = true;
        return 1;
    case KN_OPTION_TEXT:
    case KN_OPTION_LIST:
        rc = take_text(o, into, value, err);
        break;
    case KN_OPTION_INT:
    case KN_OPTION_U32:
    case KN_OPTION_U64:
        rc = take_number(o, target, value, err);
        break;
    case KN_OPTION_CHOICE:
        rc = take_choice(o, target, value, err);
        break;
    case KN_OPTION_OWN:
        rc = o->read(target, value, err);
        break;
    }
    if (rc) kn_err_prefix(err, "--%s", o->name);
    return rc;
}

/* ---- names ---- */

/* The option that `name` is, or is a beginning of and no other's; NULL: none, or several. */
static const struct kn_option *find(const struct kn_options *os, const char *name, size_t len) {
    const struct kn_option *found = NULL;
    size_t beginnings = 0;
    for (size_t i = 0; i < os->count; i++) {
        const struct kn_option *o = &os->v[i];
        if (!accepts(os, o) || strncmp(o->name, name, len) != 0) continue;
        if (!o->name[len]) return o;
        found = o;
        beginnings++;
    }
    return beginnings == 1 ? found : NULL;
}

static const struct kn_option *find_letter(const struct kn_options *os, char letter) {
    for (size_t i = 0; i < os->count; i++)
        if (os->v[i].letter == letter && accepts(os, &os->v[i])) return &os->v[i];
    return NULL;
}

static int unknown_name(const struct kn_options *os, const char *word, size_t len, struct kn_err *err) {
    char name[NAME_MAX_SHOWN];
    const char *mine[KN_OPTIONS_MAX + 1];
    size_t n = 0;
    snprintf(name, sizeof name, "%.*s", (int)(len < sizeof name ? len : sizeof name - 1), word);
    for (size_t i = 0; i < os->count && n < KN_OPTIONS_MAX; i++) {
        if (accepts(os, &os->v[i]))
            mine[n++] = os->v[i].name;
        else if (strcmp(os->v[i].name, name) == 0)
            return kn_err_set(err, KN_EINVAL, "--%s does not go with %s; see %s --help", name, os->program,
                              os->program);
    }
    mine[n] = NULL;
    const char *near = kn_suggest(name, mine);
    if (near) return kn_err_set(err, KN_EINVAL, "--%s: unknown, did you mean --%s?", name, near);
    return kn_err_set(err, KN_EINVAL, "--%s: unknown option; see %s --help", name, os->program);
}

/* ---- parsing ---- */

struct command_words { /* argv as it is read */
    char **v;
    int count, at; /* v[at]: the next word */
};

static int needs_value(const char *option, struct kn_err *err) {
    return kn_err_set(err, KN_EINVAL, "%s: needs a value", option);
}

/* "--name", "--name=VALUE", "--name VALUE". */
static int parse_long(const struct kn_options *os, struct command_words *w, char *word, char *into,
                      struct kn_err *err) {
    size_t len = strcspn(word + 2, "=");
    char *value = word[2 + len] ? word + 2 + len + 1 : NULL;
    const struct kn_option *o = find(os, word + 2, len);
    if (!o) return unknown_name(os, word + 2, len, err);
    if (!o->arg && value) return kn_err_set(err, KN_EINVAL, "--%s: takes no value", o->name);
    if (o->arg && !value) {
        if (w->at == w->count) return needs_value(word, err);
        value = w->v[w->at++];
    }
    return take(o, into, value, err);
}

/* "-q", "-qv", "-oVALUE", "-o VALUE", "-qo VALUE". */
static int parse_letters(const struct kn_options *os, struct command_words *w, char *word, char *into,
                         struct kn_err *err) {
    int rc = KN_OK;
    for (char *p = word + 1; *p && rc == KN_OK; p++) {
        const struct kn_option *o = find_letter(os, *p);
        if (!o) return kn_err_set(err, KN_EINVAL, "-%c: unknown option; see %s --help", *p, os->program);
        if (!o->arg) {
            rc = take(o, into, NULL, err);
            continue;
        }
        if (p[1]) return take(o, into, p + 1, err);
        if (w->at == w->count) return needs_value(word, err);
        return take(o, into, w->v[w->at++], err);
    }
    return rc;
}

int kn_options_parse(const struct kn_options *os, int argc, char **argv, void *into, int *operands,
                     struct kn_err *err) {
    struct command_words w = {.v = argv, .count = argc, .at = 1};
    bool only_operands = false;
    assert(os->count <= KN_OPTIONS_MAX);
    *operands = 0;
    while (w.at < w.count) {
        char *word = w.v[w.at++];
        int rc = KN_OK;
        if (only_operands || word[0] != '-' || !word[1])
            argv[1 + (*operands)++] = word; /* never ahead of what is yet to be read */
        else if (strcmp(word, "--") == 0)
            only_operands = true;
        else if (word[1] == '-')
            rc = parse_long(os, &w, word, into, err);
        else
            rc = parse_letters(os, &w, word, into, err);
        if (rc) return rc;
    }
    return KN_OK;
}

/* ---- help ---- */

/* UTF-8: the bytes that continue a character take no column. */
static int columns(const char *text, size_t len) {
    int n = 0;
    for (size_t i = 0; i < len; i++) n += ((unsigned char)text[i] & 0xc0) != 0x80;
    return n;
}

void kn_help_wrap(FILE *out, const char *text, int indent, int column) {
    while (*text) {
        size_t len = strcspn(text, " ");
        int shown = columns(text, len);
        if (column + 1 + shown > KN_HELP_COLUMNS && column > indent) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
        } else if (column > indent) {
            fputc(' ', out);
            column++;
        }
        fwrite(text, 1, len, out);
        column += shown;
        text += len;
        while (*text == ' ') text++;
    }
    fputc('\n', out);
}

void kn_options_help(const struct kn_options *os, FILE *out) {
    bool letters = false; /* a column that is there only where it has something to say */
    for (size_t i = 0; i < os->count; i++) letters = letters || (accepts(os, &os->v[i]) && os->v[i].letter);
    for (size_t i = 0; i < os->count; i++) {
        const struct kn_option *o = &os->v[i];
        if (!accepts(os, o)) continue;
        char letter[8] = "", left[96];
        if (letters) snprintf(letter, sizeof letter, o->letter ? "-%c, " : "    ", o->letter);
        int n = snprintf(left, sizeof left, "  %s--%s%s%s", letter, o->name, o->arg ? " " : "",
                         o->arg ? o->arg : "");
        fprintf(out, "%-*s ", HELP_INDENT - 1, left);
        kn_help_wrap(out, o->words, HELP_INDENT, n >= HELP_INDENT ? n + 1 : HELP_INDENT);
    }
}
