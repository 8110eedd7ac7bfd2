/* The table of variants: what ships, its parser and the look-up. The format: table.h. */
#include "kernels/cuda/table.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "base/hash.h"

/* The table that ships. Nothing of it was measured: nobody has run this backend on a GPU yet. The reasons
 * until then:
 * - Products go to cuBLASLt. Its kernels are what others measure theirs against; with one algorithm a shape
 *   and no split sums they have our promise of equal bits. GEGLU too, though it costs a pass over the
 *   product that our own kernel saves: on Hopper mma.sync reaches some two thirds of what wgmma does.
 * - 3×3 convolutions go to cuDNN for the same reason, but for those after an upsampling: our own kernel reads
 *   the small picture, and with the library the large one is written and read once more.
 * - Attention is ours everywhere.
 * - What only Hopper has (sm90) is chosen by nobody until somebody has run it. */
static const char shipped[] =
    "linear 80- in=8- out=8- cublaslt\n"
    "conv 80- kernel=1 stride=1 upsample=0 in=8- out=8- cublaslt\n"
    "conv 80- upsample=0 in=8- out=8- cudnn\n"
    "conv 80- own\n"
    "attention 80- own\n";

enum {
    RANGES_MAX = 6,
    ACTS = KX_ACT_GEGLU + 1,
    WORD_MAX = 64,
};

struct range {
    int64_t lo, hi;
};
struct rule {
    enum kx_variant_op op;
    struct range ranges[RANGES_MAX]; /* in the order of names[op] */
    int act;                         /* linear: enum kx_act, or −1 for any */
    enum kx_variant variant;
};
struct kx_variants {
    struct rule *rules; /* owns; those for this architecture */
    int n;
    char digest[KX_VARIANTS_DIGEST];
};

static const char *const op_names[] = {"conv", "linear", "attention"};
static const char *const variant_names[KX_VARIANT_COUNT] = {"own", "sm90", "cublaslt", "cudnn"};
static const char *const act_names[ACTS] = {"none", "silu", "gelu", "quick_gelu", "geglu"};
static const char *const names[][RANGES_MAX] = {
    [KX_VARIANT_CONV] = {"kernel", "stride", "upsample", "in", "out", "pixels"},
    [KX_VARIANT_LINEAR] = {"in", "out", "rows"},
    [KX_VARIANT_ATTENTION] = {"dim", "rows", "length"},
};

/* The index of `word` in a list with holes, or −1. */
static int find(const char *word, const char *const *list, int n) {
    for (int i = 0; i < n; i++)
        if (list[i] && strcmp(list[i], word) == 0) return i;
    return -1;
}

/* Decimal digits up to `end`, at least one, below 10^18. */
static bool number(const char *s, const char *end, int64_t *out) {
    if (s == end || end - s > 18) return false;
    int64_t v = 0;
    for (; s < end; s++) {
        if (*s < '0' || *s > '9') return false;
        v = v * 10 + (*s - '0');
    }
    *out = v;
    return true;
}

static bool parse_range(const char *s, struct range *r) {
    const char *end = s + strlen(s), *dash = strchr(s, '-');
    *r = (struct range){0, INT64_MAX};
    if (!dash) {
        if (!number(s, end, &r->lo)) return false;
        r->hi = r->lo;
        return true;
    }
    if (end - s == 1) return false;
    if (dash > s && !number(s, dash, &r->lo)) return false;
    if (dash + 1 < end && !number(dash + 1, end, &r->hi)) return false;
    return r->lo <= r->hi;
}

static bool inside(const struct range *r, int64_t v) {
    return v >= r->lo && v <= r->hi;
}

/* True if the variant can do the rule's shapes at all. A table that asks for something else is a mistake of
 * its writer and must not be mended in silence. */
static bool can(const struct rule *r) {
    switch (r->variant) {
    case KX_VARIANT_CUBLASLT:
        if (r->op == KX_VARIANT_LINEAR) return true;
        return r->op == KX_VARIANT_CONV && r->ranges[0].lo == 1 && r->ranges[0].hi == 1 &&
               r->ranges[1].lo == 1 && r->ranges[1].hi == 1 && r->ranges[2].hi == 0;
    case KX_VARIANT_CUDNN:
        return r->op == KX_VARIANT_CONV;
    default:
        return true;
    }
}

/* One word of a rule. A text for the person where it is wrong, else NULL. */
static const char *parse_word(struct rule *r, int at, char *word, struct range *sm, bool *has_variant) {
    if (at == 0) {
        int op = find(word, op_names, 3);
        if (op < 0) return "is not conv, linear or attention";
        r->op = (enum kx_variant_op)op;
        return NULL;
    }
    if (at == 1) return parse_range(word, sm) ? NULL : "is not a range of compute capabilities";
    if (*has_variant) return "stands after the variant";
    char *equal = strchr(word, '=');
    if (!equal) {
        int variant = find(word, variant_names, KX_VARIANT_COUNT);
        if (variant < 0) return "is not own, sm90, cublaslt or cudnn";
        r->variant = (enum kx_variant)variant;
        *has_variant = true;
        return can(r) ? NULL : "does not do what this rule is for";
    }
    *equal = 0;
    if (r->op == KX_VARIANT_LINEAR && strcmp(word, "act") == 0) {
        r->act = find(equal + 1, act_names, ACTS);
        return r->act >= 0 ? NULL : ": no such activation";
    }
    int i = find(word, names[r->op], RANGES_MAX);
    if (i < 0) return ": no such name for this op";
    return parse_range(equal + 1, &r->ranges[i]) ? NULL : ": not a range";
}

/* One line. 1: *r is a rule; 0: an empty line; else an error. */
static int parse_line(const char *name, int line, const char *s, const char *end, struct rule *r,
                      struct range *sm, struct kn_err *err) {
    *r = (struct rule){.act = -1};
    for (int i = 0; i < RANGES_MAX; i++) r->ranges[i] = (struct range){0, INT64_MAX};
    bool has_variant = false;
    int at = 0;
    for (;; at++) {
        char word[WORD_MAX];
        while (s < end && (*s == ' ' || *s == '\t' || *s == '\r')) s++;
        if (s == end || *s == '#') break;
        size_t n = 0;
        for (; s < end && *s != ' ' && *s != '\t' && *s != '\r' && *s != '#'; s++) {
            if (n + 1 == sizeof(word))
                return kn_err_set(err, KN_EPARSE, "%s:%d: a word is too long", name, line);
            word[n++] = *s;
        }
        word[n] = 0;
        char shown[WORD_MAX];
        memcpy(shown, word, n + 1);
        const char *fault = parse_word(r, at, word, sm, &has_variant);
        if (fault)
            return kn_err_set(err, KN_EPARSE, "%s:%d: %s%s%s", name, line, shown, *fault == ':' ? "" : " ",
                              fault);
    }
    if (at == 0) return 0;
    if (!has_variant) return kn_err_set(err, KN_EPARSE, "%s:%d: no variant", name, line);
    return 1;
}

/* The digest's text of a rule: all that decides, spelt one way. */
static void digest_rule(struct kn_sha256 *h, const struct rule *r) {
    char text[512];
    int n = snprintf(text, sizeof(text), "%s act=%d", op_names[r->op], r->act);
    for (int i = 0; i < RANGES_MAX && names[r->op][i]; i++)
        n += snprintf(text + n, sizeof(text) - (size_t)n, " %s=%lld-%lld", names[r->op][i],
                      (long long)r->ranges[i].lo, (long long)r->ranges[i].hi);
    n += snprintf(text + n, sizeof(text) - (size_t)n, " %s\n", variant_names[r->variant]);
    kn_sha256_update(h, text, (size_t)n);
}

int kx_variants_parse(const char *name, const char *text, int sm, struct kx_variants **out,
                      struct kn_err *err) {
    int rc = 0;
    struct kx_variants *v = calloc(1, sizeof(*v));
    struct kn_sha256 *h = kn_sha256_create();
    if (v) v->rules = calloc(KX_VARIANTS_RULES_MAX, sizeof(*v->rules));
    if (!v || !h || !v->rules) {
        rc = kn_err_set(err, KN_ENOMEM, "out of memory");
        goto out;
    }
    int line = 1;
    for (const char *s = text; *s; line++) {
        const char *end = s + strcspn(s, "\n");
        struct rule r;
        struct range range = {0, 0};
        rc = parse_line(name, line, s, end, &r, &range, err);
        if (rc < 0) goto out;
        if (rc > 0 && inside(&range, sm)) {
            if (v->n == KX_VARIANTS_RULES_MAX) {
                rc = kn_err_set(err, KN_ELIMIT, "%s:%d: more than %d rules", name, line,
                                KX_VARIANTS_RULES_MAX);
                goto out;
            }
            v->rules[v->n++] = r;
            digest_rule(h, &r);
        }
        s = *end ? end + 1 : end;
    }
    rc = 0;
    uint8_t digest[KN_SHA256_BYTES];
    kn_sha256_final(h, digest);
    h = NULL;
    kn_hex(digest, (KX_VARIANTS_DIGEST - 1) / 2, v->digest);
    *out = v;
    v = NULL;
out:
    if (h) {
        uint8_t unused[KN_SHA256_BYTES];
        kn_sha256_final(h, unused);
    }
    kx_variants_destroy(v);
    return rc;
}

int kx_variants_create(int sm, struct kx_variants **out, struct kn_err *err) {
    const char *path = getenv("KILN_CUDA_TABLE");
    if (!path || !*path) return kx_variants_parse("the shipped table", shipped, sm, out, err);

    struct kn_buf text;
    kn_buf_init(&text, KX_VARIANTS_TEXT_MAX);
    int rc = strcmp(path, "-") ? kn_fs_read(path, &text, err) : kn_err_set(err, KN_EINVAL, "-: not a file");
    if (!rc && text.data && strlen(text.data) != text.len)
        rc = kn_err_set(err, KN_EPARSE, "%s: not a text", path);
    if (rc)
        kn_err_prefix(err, "KILN_CUDA_TABLE");
    else
        rc = kx_variants_parse(path, text.data ? text.data : "", sm, out, err);
    kn_buf_fini(&text);
    return rc;
}

void kx_variants_destroy(struct kx_variants *v) {
    if (!v) return;
    free(v->rules);
    free(v);
}

const char *kx_variants_digest(const struct kx_variants *v) {
    return v->digest;
}

static enum kx_variant look_up(const struct kx_variants *v, enum kx_variant_op op,
                               const int64_t values[RANGES_MAX], int act) {
    for (int i = 0; i < v->n; i++) {
        const struct rule *r = &v->rules[i];
        bool fits = r->op == op && (r->act < 0 || r->act == act);
        for (int k = 0; fits && k < RANGES_MAX && names[op][k]; k++) fits = inside(&r->ranges[k], values[k]);
        if (fits) return r->variant;
    }
    return KX_VARIANT_OWN;
}

enum kx_variant kx_variant_conv(const struct kx_variants *v, const struct kx_conv_shape *s, int64_t pixels) {
    return look_up(v, KX_VARIANT_CONV,
                   (int64_t[RANGES_MAX]){s->kernel, s->stride, s->upsample, s->in, s->out, pixels}, 0);
}

enum kx_variant kx_variant_linear(const struct kx_variants *v, int in, int out, enum kx_act act,
                                  int64_t rows) {
    return look_up(v, KX_VARIANT_LINEAR, (int64_t[RANGES_MAX]){in, out, rows}, (int)act);
}

enum kx_variant kx_variant_attention(const struct kx_variants *v, int dim, int rows, int length) {
    return look_up(v, KX_VARIANT_ATTENTION, (int64_t[RANGES_MAX]){dim, rows, length}, 0);
}
