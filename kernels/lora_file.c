/* Reads LoRA files. Two families of names: kohya's
 * (lora_unet_down_blocks_1_attentions_0_…_to_q.lora_down.weight, with an alpha; also with the block names of
 * the original Stable Diffusion code, as SDXL's trainers write them) and diffusers'/PEFT's, whose spelling
 * changed over the years:
 *
 *     unet.….attn1.processor.to_q_lora.down.weight     text_encoder.….self_attn.to_q_lora.down.weight
 *     unet.….attn1.to_q.lora.down.weight               text_encoder.….q_proj.lora_linear_layer.down.weight
 *     unet.….attn1.to_q.lora_A.weight                  text_encoder.….q_proj.lora_A.weight
 *     base_model.model.….attn1.to_q.lora_A.weight      base_model.model.….q_proj.lora_A.weight
 *
 * All are brought to one form, dots as underscores. A key that matches nothing is an error, never passed over;
 * the layers of a text encoder that this kind of model never runs match, without effect.
 *
 * How strongly. An alpha that is a tensor: alpha / rank. Else what PEFT's config says (lora_config.h): in
 * adapter_config.json beside PEFT's own files (known by base_model.model. or by the name
 * adapter_model.safetensors), or in the file's metadata (lora_adapter_metadata). Else 1. Where two of these
 * contradict each other nobody knows what is meant, and the file is refused. kohya's ss_network_alpha repeats
 * the tensors; neither kohya's programs nor diffusers nor others read it, so that it counts for nothing. */
#include "kernels/lora_file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FLAT_MAX KX_TENSOR_NAME_MAX
#define PEFT_PREFIX "base_model.model."
#define METADATA_KEY "lora_adapter_metadata"

static const struct {
    const char *suffix;
    enum kx_lora_role role;
} suffixes[] = {
    {".lora_down.weight", KX_LORA_DOWN},
    {".lora_up.weight", KX_LORA_UP},
    {".alpha", KX_LORA_ALPHA},
    {".lora_A.weight", KX_LORA_DOWN},
    {".lora_B.weight", KX_LORA_UP},
    {".lora_A.default.weight", KX_LORA_DOWN},
    {".lora_B.default.weight", KX_LORA_UP},
    {".lora.down.weight", KX_LORA_DOWN},
    {".lora.up.weight", KX_LORA_UP},
    {"_lora.down.weight", KX_LORA_DOWN},
    {"_lora.up.weight", KX_LORA_UP},
    {".lora_linear_layer.down.weight", KX_LORA_DOWN},
    {".lora_linear_layer.up.weight", KX_LORA_UP},
};

#define NO_PREFIX (-1) /* the key does not say which network it is of */

static const struct {
    const char *prefix;
    int network; /* 0: the UNet */
} prefixes[] = {
    {"lora_unet_", 0}, {"lora_te1_", 1},       {"lora_te2_", 2},     {"lora_te_", 1},
    {"unet.", 0},      {"text_encoder_2.", 2}, {"text_encoder.", 1},
};

const char *const kx_lora_folders[KX_LORA_NETWORKS] = {"unet", "text_encoder", "text_encoder_2"};
static const char *const config_prefixes[KX_LORA_NETWORKS] = {"unet.", "text_encoder.", "text_encoder_2."};

/* ---- names */

static void flatten(char *s) {
    for (; *s; s++)
        if (*s == '.') *s = '_';
}

static const char *without(const char *s, const char *prefix) {
    size_t n = strlen(prefix);
    return strncmp(s, prefix, n) ? s : s + n;
}

/* Puts `to` in the place of `end` where the name ends so; there is room. */
static bool replace_end(char *name, const char *end, const char *to) {
    size_t n = strlen(name), e = strlen(end);
    if (n < e || strcmp(name + n - e, end)) return false;
    strcpy(name + n - e, to);
    return true;
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
    static const char *const outer[][2] = {{"conv_in", "input_blocks.0.0"},
                                           {"conv_out", "out.2"},
                                           {"time_embedding.linear_1", "time_embed.0"},
                                           {"time_embedding.linear_2", "time_embed.2"},
                                           {"add_embedding.linear_1", "label_emb.0.0"},
                                           {"add_embedding.linear_2", "label_emb.0.2"}};
    int level, k, used = 0, at = 0, sub = -1;
    char kind[16], block[32];
    out[0] = 0;
    for (size_t i = 0; i < sizeof outer / sizeof *outer; i++)
        if (!strcmp(name, outer[i][0])) snprintf(out, FLAT_MAX, "%s", outer[i][1]);
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
    } else if (!out[0]) {
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

/* Splits a key in network (maybe NO_PREFIX), flat name and role. False: it is of no kind that is applied. */
static bool split(const char *key, int *network, char name[FLAT_MAX], enum kx_lora_role *role) {
    static const char *const processors[][2] = {{"_self_attn_to_q", "_self_attn_q_proj"},
                                                {"_self_attn_to_k", "_self_attn_k_proj"},
                                                {"_self_attn_to_v", "_self_attn_v_proj"},
                                                {"_self_attn_to_out", "_self_attn_out_proj"},
                                                {"_to_out", "_to_out_0"}};
    const char *begin = without(key, PEFT_PREFIX);
    size_t len = strlen(begin), cut = 0;
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes && !cut; i++) {
        size_t n = strlen(suffixes[i].suffix);
        if (len <= n || strcmp(begin + len - n, suffixes[i].suffix)) continue;
        cut = n;
        *role = suffixes[i].role;
    }
    if (!cut || len - cut >= FLAT_MAX - 8) return false;
    *network = NO_PREFIX;
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
    memmove(name, without(name, "text_model_"), strlen(without(name, "text_model_")) + 1);
    char *processor = strstr(name, "_processor_to_"); /* diffusers before 0.22 */
    if (processor) memmove(processor, processor + 10, strlen(processor + 10) + 1);
    for (size_t i = 0; i < sizeof processors / sizeof *processors; i++)
        if (replace_end(name, processors[i][0], processors[i][1])) break;
    return true;
}

struct kx_parts *kx_lora_parts(struct kiln_model *m, int network) {
    if (network == 0) return kx_unet_parts(m->unet);
    return network <= m->encoders ? kx_text_parts(m->texts[network - 1]) : NULL;
}

static struct kx_part *find_part(struct kiln_model *m, int network, const char *name) {
    struct kx_parts *p = kx_lora_parts(m, network);
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

/* Of an encoder whose states are taken before its last layer, that layer: it is trained and written like the
 * others, and never run. The same layer one further down, which has its shapes; NULL: it is none. */
static struct kx_part *find_unused(struct kiln_model *m, int network, const char *name) {
    if (network < 1 || network > m->encoders) return NULL;
    const struct kx_text_config *cfg = network == 1 ? &m->cfg.text : &m->cfg.text2;
    char last[FLAT_MAX], other[FLAT_MAX];
    if (!cfg->penultimate || cfg->projected || cfg->layers < 2) return NULL;
    snprintf(last, sizeof last, "encoder_layers_%d_", cfg->layers - 1);
    if (without(name, last) == name) return NULL;
    snprintf(other, sizeof other, "encoder_layers_%d_%.200s", cfg->layers - 2, without(name, last));
    return find_part(m, network, other);
}

/* ---- files */

static struct kx_lora_delta *delta_of(struct kx_lora_file *f, int network, const char *name) {
    for (int i = f->count - 1; i >= 0; i--) /* keys are sorted: it is near the end */
        if (f->v[i].network == network && !strcmp(f->v[i].name, name)) return &f->v[i];
    if (f->count == f->cap) {
        int cap = f->cap ? 2 * f->cap : 64;
        struct kx_lora_delta *v = realloc(f->v, (size_t)cap * sizeof *v);
        if (!v) return NULL;
        f->v = v;
        f->cap = cap;
    }
    struct kx_lora_delta *d = &f->v[f->count++];
    *d = (struct kx_lora_delta){.network = network};
    snprintf(d->name, sizeof d->name, "%s", name);
    return d;
}

static int64_t values_of(const struct kx_weight *w) {
    int64_t n = 1;
    for (int i = 0; i < w->ndim; i++) n *= w->shape[i];
    return n;
}

/* A network for a key that does not name one: what networks save of themselves. */
static int guess_network(const struct kiln_model *m, const char *path, const char *key, const char *name,
                         int *network, struct kn_err *err) {
    *network = without(name, "encoder_layers_") != name || !strcmp(name, "text_projection");
    if (*network && m->encoders > 1)
        return kn_err_set(err, KN_EUNSUPPORTED,
                          "%s: %.200s: does not say which of the model's %d text encoders it is of", path,
                          key, m->encoders);
    return 0;
}

static int add_key(struct kiln_model *m, struct kx_lora_file *f, const struct kx_weight *w,
                   struct kn_err *err) {
    char name[FLAT_MAX];
    int network;
    enum kx_lora_role role = KX_LORA_ROLES;
    if (!split(w->name, &network, name, &role))
        return kn_err_set(err, KN_EUNSUPPORTED, "%s: %.200s: not of a kind of LoRA that is applied", f->path,
                          w->name);
    if (network != NO_PREFIX) f->prefixed = w->name;
    int rc = network == NO_PREFIX ? guess_network(m, f->path, w->name, name, &network, err) : 0;
    if (rc) return rc;
    struct kx_lora_delta *d = delta_of(f, network, name);
    if (!d) return kn_err_set(err, KN_ENOMEM, "out of memory");
    if (!d->key) {
        struct kx_part *like = d->part = find_part(m, network, name);
        if (!like && !(like = find_unused(m, network, name)))
            return kn_err_set(err, KN_EPARSE, "%s: %.200s: this model has no such layer", f->path, w->name);
        f->unused += !d->part;
        d->key = w->name;
        d->rows = like->rows;
        d->columns = like->columns;
    }
    if (d->w[role])
        return kn_err_set(err, KN_EPARSE, "%s: %.200s: is there twice, as %.200s too", f->path, w->name,
                          d->w[role]->name);
    d->w[role] = w;
    return 0;
}

/* ---- how strongly */

/* PEFT's config, from the file's metadata or from beside it. */
static int read_config(struct kx_lora_file *f, struct kn_err *err) {
    const char *slash = strrchr(f->path, '/'), *base = slash ? slash + 1 : f->path;
    const char *text = kx_weights_metadata(f->weights, METADATA_KEY);
    bool is_peft = false, has_alphas = true;
    for (size_t i = 0; i < kx_weights_count(f->weights) && !is_peft; i++)
        is_peft = !strncmp(kx_weights_at(f->weights, i)->name, PEFT_PREFIX, strlen(PEFT_PREFIX));
    for (int i = 0; i < f->count; i++) has_alphas &= f->v[i].w[KX_LORA_ALPHA] != NULL;
    if (is_peft || !strcmp(base, "adapter_model.safetensors")) {
        int n = snprintf(f->config_file, sizeof f->config_file, "%.*sadapter_config.json",
                         (int)(base - f->path), f->path);
        if (n < 0 || (size_t)n >= KN_PATH_MAX)
            return kn_err_set(err, KN_ELIMIT, "%s: path too long", f->path);
        if (kn_fs_exists(f->config_file)) {
            if (text && *text)
                return kn_err_set(err, KN_EUNSUPPORTED,
                                  "%s: its " METADATA_KEY " and %s both say how strong it is", f->path,
                                  f->config_file);
            f->one_for_all = true;
            return kx_json_load(f->config_file, &f->config, err);
        }
        if (is_peft && !has_alphas && !(text && *text))
            return kn_err_set(err, KN_ENOENT, "%s: is not there; it says how strong %s is", f->config_file,
                              f->path);
    }
    if (!text || !*text) return 0;
    snprintf(f->config_file, sizeof f->config_file, "%s: " METADATA_KEY, f->path);
    int rc = kx_json_parse(f->config_file, text, strlen(text), &f->config, err);
    if (rc) return rc;
    /* what a network saves of itself has prefixes neither in its keys nor here */
    f->one_for_all = kx_json_get(&f->config, "r") || kx_json_get(&f->config, "lora_alpha");
    if (f->one_for_all && f->prefixed)
        return kn_err_set(err, KN_EUNSUPPORTED, "%s: r: without the network that %.200s names",
                          f->config_file, f->prefixed);
    return 0;
}

static int read_alpha(const struct kx_weight *w, double *out, struct kn_err *err) {
    float f;
    int64_t whole = 0;
    int32_t less = 0;
    if (values_of(w) != 1)
        return kn_err_set(err, KN_EPARSE, "%s: %.200s: is not one number", w->file, w->name);
    if (w->dtype == KX_I64) { /* some trainers write it so */
        memcpy(&whole, w->data, sizeof whole);
        *out = (double)whole;
        return 0;
    }
    if (w->dtype == KX_I32) {
        memcpy(&less, w->data, sizeof less);
        *out = less;
        return 0;
    }
    int rc = kx_weight_read(w, &f, err);
    if (!rc) *out = f;
    return rc;
}

static int read_scale(const struct kx_lora_file *f, const struct kx_lora_config *configs,
                      struct kx_lora_delta *d, struct kn_err *err) {
    int rank = (int)d->w[KX_LORA_DOWN]->shape[0], rc = 0;
    float said = 1;
    d->scale = 1;
    if (f->config.o) {
        const char *module = d->part ? without(d->part->name, "text_model.") : d->name;
        char full[FLAT_MAX + 16];
        snprintf(full, sizeof full, "%s%s", d->network ? "text_model." : "", module);
        const struct kx_lora_config *c = &configs[f->one_for_all ? 0 : d->network];
        if ((rc = kx_lora_config_scale(c, full, rank, &said, err))) return rc;
        d->scale = said;
    }
    if (d->w[KX_LORA_ALPHA]) {
        double alpha = 0;
        if ((rc = read_alpha(d->w[KX_LORA_ALPHA], &alpha, err))) return rc;
        d->scale = (float)alpha / (float)rank;
        if (f->config.o && fabsf(d->scale - said) > 1e-3f * fabsf(said)) /* it may be a half */
            return kn_err_set(err, KN_EUNSUPPORTED, "%s: %.200s: makes a scale of %g, and %s one of %g",
                              f->path, d->w[KX_LORA_ALPHA]->name, (double)d->scale, f->config_file,
                              (double)said);
    }
    return 0;
}

static int check_delta(const struct kx_lora_file *f, const struct kx_lora_delta *d, struct kn_err *err) {
    const struct kx_weight *down = d->w[KX_LORA_DOWN], *up = d->w[KX_LORA_UP];
    if (!down || !up)
        return kn_err_set(err, KN_EPARSE, "%s: %.200s: its %s is missing", f->path, d->key,
                          down ? "up" : "down");
    int64_t rank = down->ndim ? down->shape[0] : 0;
    if (rank < 1 || rank > KX_LORA_RANK_MAX || values_of(down) != rank * d->columns ||
        values_of(up) != rank * d->rows || up->ndim < 2 || up->shape[0] != d->rows)
        return kn_err_set(err, KN_EPARSE, "%s: %.200s: its shapes do not fit the model's %d × %d weights",
                          f->path, d->key, d->rows, d->columns);
    int rc = 0;
    for (int i = 0; i < 2 && !rc; i++) { /* their values, before anything is changed */
        const struct kx_weight *w = i ? up : down;
        float *v = malloc((size_t)values_of(w) * sizeof *v);
        rc = v ? kx_weight_read(w, v, err) : kn_err_set(err, KN_ENOMEM, "out of memory");
        free(v);
    }
    return rc;
}

int kx_lora_open(struct kiln_model *m, const char *path, struct kx_lora_file *f, struct kn_err *err) {
    struct kx_lora_config configs[KX_LORA_NETWORKS];
    *f = (struct kx_lora_file){.path = path};
    int rc = kx_weights_open_file(path, &f->weights, err);
    for (size_t i = 0; !rc && i < kx_weights_count(f->weights); i++)
        rc = add_key(m, f, kx_weights_at(f->weights, i), err);
    for (int i = 0; !rc && i < f->count; i++) rc = check_delta(f, &f->v[i], err);
    if (!rc) rc = read_config(f, err);
    for (int i = 0; !rc && f->config.o && i < (f->one_for_all ? 1 : KX_LORA_NETWORKS); i++)
        rc = kx_lora_config_read(&f->config, f->one_for_all ? "" : config_prefixes[i], &configs[i], err);
    for (int i = 0; !rc && i < f->count; i++) rc = read_scale(f, configs, &f->v[i], err);
    return rc;
}

void kx_lora_close(struct kx_lora_file *f) {
    if (f->weights) kx_weights_close(f->weights);
    json_object_put(f->config.o);
    free(f->v);
    *f = (struct kx_lora_file){0};
}

int kx_lora_add(const struct kx_lora_delta *d, float times, float *to, struct kn_err *err) {
    size_t rank = (size_t)d->w[KX_LORA_DOWN]->shape[0], rows = (size_t)d->rows, columns = (size_t)d->columns;
    float *down = malloc(rank * columns * sizeof *down), *up = malloc(rank * rows * sizeof *up);
    int rc = down && up ? 0 : kn_err_set(err, KN_ENOMEM, "out of memory");
    if (!rc) rc = kx_weight_read(d->w[KX_LORA_DOWN], down, err);
    if (!rc) rc = kx_weight_read(d->w[KX_LORA_UP], up, err);
    float scale = times * d->scale;
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
