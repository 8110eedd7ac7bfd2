#include "kernels/lora_config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define PATTERN_MAX 256 /* characters of a pattern */
#define ALPHA_MAX 1e6

/* ---- patterns */

/* One character of a pattern, or any of a class, so and so many times. */
struct token {
    char kind; /* 'c': the character; '.': any; 'd': a digit */
    char c;
    char times; /* '1', or '?', '*', '+' */
};

/* How many tokens; −1: a construct that is not known. */
static int tokens_of(const char *p, struct token *t) {
    int n = 0;
    for (; *p && !(p[0] == '$' && !p[1]); p++) {
        if (n == PATTERN_MAX || strchr("^$*+?()[]{}|", *p)) return -1;
        t[n] = (struct token){'c', *p, '1'};
        if (*p == '.') {
            t[n].kind = '.';
        } else if (*p == '\\') {
            p++;
            bool letter = (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9');
            if (!*p || (letter && *p != 'd')) return -1;
            t[n].kind = letter ? 'd' : 'c';
            t[n].c = *p;
        }
        if (p[1] && strchr("?*+", p[1])) t[n].times = *++p;
        n++;
    }
    return n;
}

/* From the tokens that may be next: those behind one that may be absent. */
static void pass_over(const struct token *t, int n, bool *next) {
    for (int i = 0; i < n; i++)
        if (next[i] && (t[i].times == '?' || t[i].times == '*')) next[i + 1] = true;
}

/* True when the tokens are the whole of s. All ways are followed side by side, so that no pattern takes long. */
static bool is_whole(const struct token *t, int n, const char *s) {
    bool next[PATTERN_MAX + 1] = {true};
    pass_over(t, n, next);
    for (; *s; s++) {
        bool then[PATTERN_MAX + 1] = {false};
        for (int i = 0; i < n; i++) {
            bool fits = t[i].kind == '.' || (t[i].kind == 'd' ? *s >= '0' && *s <= '9' : *s == t[i].c);
            if (!next[i] || !fits) continue;
            then[i + 1] = true;
            if (t[i].times == '*' || t[i].times == '+') then[i] = true;
        }
        memcpy(next, then, sizeof next);
        pass_over(t, n, next);
    }
    return next[n];
}

int kx_lora_pattern(const char *pattern, const char *name, bool *fits) {
    struct token t[PATTERN_MAX];
    bool anchored = pattern[0] == '^';
    int n = tokens_of(pattern + anchored, t);
    if (n < 0) return KN_EUNSUPPORTED;
    *fits = is_whole(t, n, name);
    for (const char *dot = name; !anchored && !*fits && (dot = strchr(dot, '.')); dot++)
        *fits = is_whole(t, n, dot + 1);
    return 0;
}

/* ---- the config */

/* Keys that PEFT itself passes over once a LoRA is trained, and those that say only which layers there are: the file's
 * keys say that. fan_in_fan_out is about layers that these models do not have. */
static const char *const harmless[] = {
    "task_type",         "auto_mapping",    "peft_version",
    "revision",          "inference_mode",  "base_model_name_or_path",
    "target_modules",    "exclude_modules", "layers_to_transform",
    "layers_pattern",    "lora_dropout",    "fan_in_fan_out",
    "megatron_core",     "runtime_config",  "loftq_config",
    "eva_config",        "corda_config",    "lora_ga_config",
    "qalora_group_size",
};

static bool is_among(const char *key, const char *const *list, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!strcmp(key, list[i])) return true;
    return false;
}

/* null, false, 0, "", [] or {}. */
static bool is_empty(json_object *v) {
    switch (json_object_get_type(v)) {
    case json_type_null:
        return true;
    case json_type_string:
        return !json_object_get_string_len(v);
    case json_type_array:
        return !json_object_array_length(v);
    case json_type_object:
        return !json_object_object_length(v);
    default:
        return json_object_get_double(v) == 0;
    }
}

/* A key that is neither used nor harmless. */
static int check_other(const struct kx_json *j, const char *full, const char *key, json_object *v,
                       struct kn_err *err) {
    static const char *const used[] = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"};
    static const char *const kinds[] = {"LORA"}, *const biases[] = {"none"};
    /* the others leave their mark in the model's own weights, which the file does not hold */
    static const char *const inits[] = {"gaussian", "eva", "orthogonal", "true", "false"};
    if (is_among(key, used, sizeof used / sizeof *used) ||
        is_among(key, harmless, sizeof harmless / sizeof *harmless) || is_empty(v))
        return 0;
    const char *text = json_object_get_string(v);
    if (!strcmp(key, "peft_type") && is_among(text, kinds, 1)) return 0;
    if (!strcmp(key, "bias") && is_among(text, biases, 1)) return 0;
    if (!strcmp(key, "init_lora_weights") && is_among(text, inits, sizeof inits / sizeof *inits)) return 0;
    return kn_err_set(err, KN_EUNSUPPORTED,
                      "%s: %.100s: %.100s is not supported: it changes more than kiln applies", j->file, full,
                      text);
}

/* An object of numbers within a range, under keys that are patterns. */
static int read_patterns(const struct kx_json *j, const char *full, bool whole, double min, double max,
                         json_object **out, struct kn_err *err) {
    bool fits;
    json_object *all = kx_json_get(j, full);
    *out = all;
    if (!all) return 0;
    if (!json_object_is_type(all, json_type_object))
        return kn_err_set(err, KN_EPARSE, "%s: %s: not an object", j->file, full);
    json_object_object_foreach(all, pattern, v) {
        double d =
            json_object_is_type(v, json_type_int) || (!whole && json_object_is_type(v, json_type_double))
                ? json_object_get_double(v)
                : (double)NAN;
        if (!(d >= min && d <= max))
            return kn_err_set(err, KN_EPARSE, "%s: %s: %.100s: not a number between %g and %g", j->file, full,
                              pattern, min, max);
        if (kx_lora_pattern(pattern, "", &fits))
            return kn_err_set(err, KN_EUNSUPPORTED,
                              "%s: %s: %.100s: a regular expression with more than . \\d * + ?", j->file,
                              full, pattern);
    }
    return 0;
}

int kx_lora_config_read(const struct kx_json *j, const char *prefix, struct kx_lora_config *out,
                        struct kn_err *err) {
    enum { KEY_MAX = 64 };
    char r[KEY_MAX], alpha[KEY_MAX], root[KEY_MAX], ranks[KEY_MAX], alphas[KEY_MAX];
    size_t skip = strlen(prefix);
    *out = (struct kx_lora_config){.file = j->file, .prefix = prefix, .rank = 8, .alpha = 8};
    int rc = 0;
    json_object_object_foreach(j->o, full, v) {
        if (strncmp(full, prefix, skip)) continue;
        if ((rc = check_other(j, full, full + skip, v, err))) return rc;
    }
    snprintf(r, sizeof r, "%sr", prefix);
    snprintf(alpha, sizeof alpha, "%slora_alpha", prefix);
    snprintf(root, sizeof root, "%suse_rslora", prefix);
    snprintf(ranks, sizeof ranks, "%srank_pattern", prefix);
    snprintf(alphas, sizeof alphas, "%salpha_pattern", prefix);
    rc = kx_json_int(j, r, 1, KX_LORA_RANK_MAX, &out->rank, err);
    if (!rc) rc = kx_json_double(j, alpha, -ALPHA_MAX, ALPHA_MAX, &out->alpha, err);
    if (!rc) rc = kx_json_bool(j, root, &out->root, err);
    if (!rc) rc = read_patterns(j, ranks, true, 1, KX_LORA_RANK_MAX, &out->ranks, err);
    if (!rc) rc = read_patterns(j, alphas, false, -ALPHA_MAX, ALPHA_MAX, &out->alphas, err);
    return rc;
}

/* The value of the first pattern that fits, in the file's order. */
static double value_of(json_object *patterns, const char *module, double otherwise) {
    bool fits = false;
    if (patterns) {
        json_object_object_foreach(patterns, pattern, v) if (!kx_lora_pattern(pattern, module, &fits) &&
                                                             fits) return json_object_get_double(v);
    }
    return otherwise;
}

int kx_lora_config_scale(const struct kx_lora_config *c, const char *module, int rank, float *out,
                         struct kn_err *err) {
    int said = (int)value_of(c->ranks, module, c->rank);
    if (said != rank)
        return kn_err_set(err, KN_EPARSE, "%s: %.200s: rank %d, where %sr or %srank_pattern says %d", c->file,
                          module, rank, c->prefix, c->prefix, said);
    double alpha = value_of(c->alphas, module, c->alpha);
    *out = (float)(alpha / (c->root ? sqrt(rank) : rank));
    return 0;
}
