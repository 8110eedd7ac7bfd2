/* LoRA: low-rank changes to a model's weights, W + scale · up · down (Hu et al. 2021), applied without
 * loading the model anew: the layers that a file changes get other weights in place, computed from the
 * model's own files, so that taking a LoRA off gives the very bytes back.
 *
 * Names. Two families of files are read: kohya's
 * (lora_unet_down_blocks_1_attentions_0_…_to_q.lora_down.weight, with an alpha; also with the block names of
 * the original Stable Diffusion code, as SDXL's trainers write them) and diffusers'/PEFT's
 * (unet.down_blocks.1.attentions.0.….to_q.lora_A.weight). Both are brought to one form, dots as underscores.
 * A key that matches nothing is an error, never passed over. Scale = alpha / rank (1 without alpha) times
 * what is asked for. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "kernels/engine.h"
#include "kernels/io/safetensors.h"
#include "kernels/models/load.h"

#define FLAT_MAX KX_TENSOR_NAME_MAX
#define RANK_MAX 4096
#define NETWORKS (1 + ENCODERS_MAX) /* the UNet, then the text encoders */

enum role { DOWN, UP, ALPHA, ROLES };

static const struct {
    const char *suffix;
    enum role role;
} suffixes[] = {
    {".lora_down.weight", DOWN},    {".lora_up.weight", UP},     {".alpha", ALPHA},
    {".lora_A.weight", DOWN},       {".lora_B.weight", UP},      {".lora_A.default.weight", DOWN},
    {".lora_B.default.weight", UP}, {".lora.down.weight", DOWN}, {".lora.up.weight", UP},
    {"_lora.down.weight", DOWN},    {"_lora.up.weight", UP},
};

static const struct {
    const char *prefix;
    int network; /* 0: the UNet */
} prefixes[] = {
    {"lora_unet_", 0}, {"lora_te1_", 1},       {"lora_te2_", 2},     {"lora_te_", 1},
    {"unet.", 0},      {"text_encoder_2.", 2}, {"text_encoder.", 1},
};

/* One layer's change. */
struct delta {
    int network;
    char name[FLAT_MAX]; /* flat */
    struct kx_part *part;
    const struct kx_weight *w[ROLES];
};

struct file {
    const char *path;
    float scale;
    struct kx_weights *weights;
    struct delta *v; /* owns */
    int count, cap;
};

/* ---- names */

static void flatten(char *s) {
    for (; *s; s++)
        if (*s == '.') *s = '_';
}

static const char *without(const char *s, const char *prefix) {
    size_t n = strlen(prefix);
    return strncmp(s, prefix, n) ? s : s + n;
}

/* A part's name in the flat form. */
static void flat_name(const char *name, char out[FLAT_MAX]) {
    snprintf(out, FLAT_MAX, "%s", without(name, "text_model."));
    flatten(out);
}

/* A UNet part's name as the original code has it (input_blocks.4.1.…), flat; "" where it has none. */
static void original_name(const struct kx_unet_config *cfg, const char *name, char out[FLAT_MAX]) {
    static const char *const inner[][2] = {{"conv1", "in_layers.2"},
                                           {"conv2", "out_layers.3"},
                                           {"time_emb_proj", "emb_layers.1"},
                                           {"conv_shortcut", "skip_connection"}};
    int level, k, used = 0, at = 0, sub = -1;
    char kind[16], block[32];
    out[0] = 0;
    if (sscanf(name, "down_blocks.%d.%15[a-z].%d.%n", &level, kind, &k, &used) == 3 && used) {
        at = 1;
        for (int i = 0; i < level && i < cfg->levels; i++) at += cfg->layers[i] + 1;
        bool last = !strcmp(kind, "downsamplers");
        at += last ? cfg->layers[level < cfg->levels ? level : 0] : k;
        sub = last ? 0 : !strcmp(kind, "attentions");
        snprintf(block, sizeof block, "input_blocks");
        if (last) snprintf(out, FLAT_MAX, "%s.%d.0.op", block, at);
    } else if (sscanf(name, "up_blocks.%d.%15[a-z].%d.%n", &level, kind, &k, &used) == 3 && used) {
        for (int i = 0; i < level && i < cfg->levels; i++) at += cfg->layers[cfg->levels - 1 - i] + 1;
        bool last = !strcmp(kind, "upsamplers");
        int here = cfg->levels - 1 - level;
        at += last ? cfg->layers[here >= 0 ? here : 0] : k;
        sub = !strcmp(kind, "attentions");
        snprintf(block, sizeof block, "output_blocks");
        if (last)
            snprintf(out, FLAT_MAX, "%s.%d.%d.conv", block, at,
                     level < cfg->levels && cfg->up[level] == KX_BLOCK_CROSS_ATTN ? 2 : 1);
    } else if (sscanf(name, "mid_block.%15[a-z].%d.%n", kind, &k, &used) == 2 && used) {
        at = !strcmp(kind, "attentions") ? 1 : 2 * k;
        snprintf(block, sizeof block, "middle_block");
    } else {
        return;
    }
    const char *rest = name + used;
    if (!out[0]) {
        if (!strcmp(kind, "resnets"))
            for (size_t i = 0; i < sizeof inner / sizeof *inner; i++)
                if (!strcmp(rest, inner[i][0])) rest = inner[i][1];
        if (sub < 0)
            snprintf(out, FLAT_MAX, "%s.%d.%s", block, at, rest);
        else
            snprintf(out, FLAT_MAX, "%s.%d.%d.%s", block, at, sub, rest);
    }
    flatten(out);
}

/* Splits a key in network, flat name and role. False: it is of no kind that is applied. */
static bool split(const char *key, int *network, char name[FLAT_MAX], enum role *role) {
    const char *begin = without(key, "base_model.model.");
    size_t len = strlen(begin), cut = 0;
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes && !cut; i++) {
        size_t n = strlen(suffixes[i].suffix);
        if (len <= n || strcmp(begin + len - n, suffixes[i].suffix)) continue;
        cut = n;
        *role = suffixes[i].role;
    }
    if (!cut || len - cut >= FLAT_MAX - 3) return false;
    *network = 0; /* what UNets save of themselves has no prefix */
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        const char *rest = without(begin, prefixes[i].prefix);
        if (rest == begin) continue;
        len -= (size_t)(rest - begin);
        begin = rest;
        *network = prefixes[i].network;
        break;
    }
    if (len <= cut) return false;
    snprintf(name, FLAT_MAX, "%.*s", (int)(len - cut), begin);
    flatten(name);
    if (*network) memmove(name, without(name, "text_model_"), strlen(without(name, "text_model_")) + 1);
    char *processor = strstr(name, "_processor_to_"); /* diffusers before 0.22 */
    if (processor) memmove(processor, processor + 10, strlen(processor + 10) + 1);
    size_t n = strlen(name);
    if (n > 7 && !strcmp(name + n - 7, "_to_out")) strcat(name, "_0");
    return true;
}

static struct kx_parts *parts_of(struct kiln_model *m, int network) {
    if (network == 0) return kx_unet_parts(m->unet);
    return network <= m->encoders ? kx_text_parts(m->texts[network - 1]) : NULL;
}

static struct kx_part *find_part(struct kiln_model *m, int network, const char *name) {
    struct kx_parts *p = parts_of(m, network);
    char other[FLAT_MAX];
    for (int i = 0; p && i < p->count; i++) {
        flat_name(p->v[i].name, other);
        if (!strcmp(other, name)) return &p->v[i];
        if (network) continue;
        original_name(&m->cfg.unet, p->v[i].name, other);
        if (other[0] && !strcmp(other, name)) return &p->v[i];
    }
    return NULL;
}

/* ---- files */

static struct delta *delta_of(struct file *f, int network, const char *name) {
    for (int i = f->count - 1; i >= 0; i--) /* keys are sorted: it is near the end */
        if (f->v[i].network == network && !strcmp(f->v[i].name, name)) return &f->v[i];
    if (f->count == f->cap) {
        int cap = f->cap ? 2 * f->cap : 64;
        struct delta *v = realloc(f->v, (size_t)cap * sizeof *v);
        if (!v) return NULL;
        f->v = v;
        f->cap = cap;
    }
    struct delta *d = &f->v[f->count++];
    *d = (struct delta){.network = network};
    snprintf(d->name, sizeof d->name, "%s", name);
    return d;
}

static int64_t values_of(const struct kx_weight *w) {
    int64_t n = 1;
    for (int i = 0; i < w->ndim; i++) n *= w->shape[i];
    return n;
}

static int check_delta(const struct file *f, const struct delta *d, struct kn_err *err) {
    const struct kx_weight *down = d->w[DOWN], *up = d->w[UP], *alpha = d->w[ALPHA];
    if (!down || !up)
        return kn_err_set(err, KN_EPARSE, "%s: %s: its %s is missing", f->path, d->name,
                          down ? "up" : "down");
    int64_t rank = down->ndim ? down->shape[0] : 0;
    if (rank < 1 || rank > RANK_MAX || values_of(down) != rank * d->part->columns ||
        values_of(up) != rank * d->part->rows || up->ndim < 2 || up->shape[0] != d->part->rows)
        return kn_err_set(err, KN_EPARSE, "%s: %s: its shapes do not fit the model's %d × %d weights",
                          f->path, d->name, d->part->rows, d->part->columns);
    if (alpha && values_of(alpha) != 1)
        return kn_err_set(err, KN_EPARSE, "%s: %s: its alpha is not one number", f->path, d->name);
    return 0;
}

static int read_file(struct kiln_model *m, struct file *f, struct kn_err *err) {
    int rc = kx_weights_open_file(f->path, &f->weights, err);
    for (size_t i = 0; !rc && i < kx_weights_count(f->weights); i++) {
        const struct kx_weight *w = kx_weights_at(f->weights, i);
        char name[FLAT_MAX];
        int network;
        enum role role;
        if (!split(w->name, &network, name, &role))
            return kn_err_set(err, KN_EUNSUPPORTED, "%s: %.200s: not of a kind of LoRA that is applied",
                              f->path, w->name);
        struct delta *d = delta_of(f, network, name);
        if (!d) return kn_err_set(err, KN_ENOMEM, "out of memory");
        if (!d->part && !(d->part = find_part(m, network, name)))
            return kn_err_set(err, KN_EPARSE, "%s: %.200s: this model has no such layer", f->path, w->name);
        d->w[role] = w;
    }
    for (int i = 0; !rc && i < f->count; i++) rc = check_delta(f, &f->v[i], err);
    return rc;
}

/* ---- weights */

/* to += scale · up · down, rows × columns. */
static int add_delta(const struct delta *d, float scale, float *to, struct kn_err *err) {
    size_t rank = (size_t)d->w[DOWN]->shape[0], rows = (size_t)d->part->rows,
           columns = (size_t)d->part->columns;
    float *down = malloc(rank * columns * sizeof *down), *up = malloc(rank * rows * sizeof *up),
          alpha = (float)rank;
    int rc = down && up ? 0 : kn_err_set(err, KN_ENOMEM, "out of memory");
    if (!rc && (kx_weight_f32(d->w[DOWN], down) || kx_weight_f32(d->w[UP], up) ||
                (d->w[ALPHA] && kx_weight_f32(d->w[ALPHA], &alpha))))
        rc = kn_err_set(err, KN_EPARSE, "%s: whole numbers where weights should be", d->name);
    scale *= alpha / (float)rank;
    for (size_t o = 0; o < rows && !rc; o++)
        for (size_t r = 0; r < rank; r++) {
            float s = scale * up[o * rank + r], *y = to + o * columns;
            const float *x = down + r * columns;
            for (size_t i = 0; i < columns; i++) y[i] += s * x[i];
        }
    free(down);
    free(up);
    return rc;
}

static bool same_layer(const struct kx_part *a, const struct kx_part *b) {
    return a->conv == b->conv && a->linear == b->linear;
}

/* Whether a file changes the part. */
static bool is_changed(const struct file *files, int n, const struct kx_part *part) {
    for (int i = 0; i < n; i++)
        for (int k = 0; k < files[i].count; k++)
            if (files[i].v[k].part == part) return true;
    return false;
}

/* The layer that parts [first, end) are in: the model's weights, and what the files add. */
static int set_layer(struct kx_ctx *ctx, const struct kx_weights *base, struct kx_part *first,
                     const struct kx_part *end, const struct file *files, int n, struct kn_err *err) {
    size_t columns = (size_t)first->columns, rows = 0;
    for (const struct kx_part *p = first; p < end; p++) rows += (size_t)p->rows;
    float *v = malloc(rows * columns * sizeof *v);
    int rc = v ? 0 : kn_err_set(err, KN_ENOMEM, "out of memory");
    for (struct kx_part *p = first; p < end && !rc; p++) {
        char name[FLAT_MAX + 16];
        snprintf(name, sizeof name, "%s.weight", p->name);
        const struct kx_weight *w = kx_weights_find(base, name);
        float *to = v + (size_t)p->from * columns;
        if (!w || values_of(w) != (int64_t)p->rows * p->columns || kx_weight_f32(w, to))
            rc = kn_err_set(err, KN_EPARSE, "%s: it has changed since the model was loaded", name);
        p->changed = false;
        for (int i = 0; i < n && !rc; i++)
            for (int k = 0; k < files[i].count && !rc; k++)
                if (files[i].v[k].part == p) {
                    rc = add_delta(&files[i].v[k], files[i].scale, to, err);
                    p->changed = true;
                }
    }
    if (!rc)
        rc = first->conv ? kx_conv_set(ctx, first->conv, v, err) : kx_linear_set(ctx, first->linear, v, err);
    free(v);
    return rc;
}

/* All layers of a network that are changed, or were. *any: there were some. */
static int set_network(struct kiln_model *m, int network, const struct file *files, int n, bool *any,
                       struct kn_err *err) {
    static const char *const folders[NETWORKS] = {"unet", "text_encoder", "text_encoder_2"};
    struct kx_parts *parts = parts_of(m, network);
    struct kx_ctx *ctx = network ? m->engine->text : m->engine->unet;
    struct kx_weights *base = NULL;
    char path[KN_PATH_MAX];
    int rc = 0;
    *any = false;
    for (int i = 0, end; parts && i < parts->count && !rc; i = end) {
        bool wanted = false;
        for (end = i; end < parts->count && same_layer(&parts->v[i], &parts->v[end]); end++)
            wanted |= parts->v[end].changed || is_changed(files, n, &parts->v[end]);
        if (!wanted) continue;
        *any = true;
        if (!base) {
            rc = kn_fs_join(path, sizeof path, m->dir, folders[network]);
            rc = rc ? kn_err_set(err, rc, "%s: path too long", m->dir)
                    : kx_weights_open(path, network ? "model" : "diffusion_pytorch_model", &base, err);
        }
        if (!rc) rc = set_layer(ctx, base, &parts->v[i], &parts->v[end], files, n, err);
    }
    kx_weights_close(base);
    return rc;
}

static int set_all(struct kiln_model *m, const struct file *files, int n, struct kn_err *err) {
    bool any, texts = false;
    int rc = 0;
    for (int network = 0; network < NETWORKS && !rc; network++) {
        rc = set_network(m, network, files, n, &any, err);
        texts |= any && network;
    }
    if (texts) kx_condition_forget(m);
    return rc;
}

int kiln_model_set_loras(struct kiln_model *m, const struct kiln_lora *loras, int n, struct kn_err *err) {
    if (n < 0 || n > KILN_LORAS_MAX)
        return kn_err_set(err, KN_ELIMIT, "%d LoRAs, not 0 to %d", n, KILN_LORAS_MAX);
    struct file files[KILN_LORAS_MAX] = {0};
    struct kiln_engine *e = m->engine;
    int rc = 0;
    for (int i = 0; i < n && !rc; i++) {
        files[i] = (struct file){.path = loras[i].path, .scale = loras[i].scale};
        rc = read_file(m, &files[i], err);
    }
    if (!rc) {
        kx_engine_enter_all(e);
        if ((rc = set_all(m, files, n, err))) {
            struct kn_err more;
            if (set_all(m, NULL, 0, &more)) m->spoiled = true;
        } else {
            m->spoiled = false;
        }
        kx_engine_leave_all(e);
    }
    for (int i = 0; i < n; i++) {
        if (files[i].weights) kx_weights_close(files[i].weights);
        free(files[i].v);
    }
    return rc;
}
