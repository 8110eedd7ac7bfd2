/* See the header. Each reader first holds the file's keys against their table (config_keys.h), then takes the
 * ones that are used. */
#include "kernels/io/config.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "kernels/io/config_keys.h"

#define CHANNELS_MAX 16384

/* The words of an array of strings, each looked up in `words`; absent leaves *count at 0. */
static int read_words(const struct kx_json *j, const char *key, const char *const *words, int *out,
                      int *count, struct kn_err *err) {
    *count = 0;
    json_object *a = kx_json_get(j, key);
    if (!a) return 0;
    if (!json_object_is_type(a, json_type_array))
        return kn_err_set(err, KN_EPARSE, "%s: %s: not a list", j->file, key);
    size_t n = json_object_array_length(a);
    if (n < 1 || n > KX_LEVELS_MAX)
        return kn_err_set(err, KN_EPARSE, "%s: %s: %zu levels, not 1 to %d", j->file, key, n, KX_LEVELS_MAX);
    for (size_t i = 0; i < n; i++) {
        const char *s = json_object_get_string(json_object_array_get_idx(a, i));
        int k = 0;
        while (words[k] && (!s || strcmp(words[k], s))) k++;
        if (!words[k])
            return kn_err_set(err, KN_EUNSUPPORTED, "%s: %s: \"%.64s\" is not supported", j->file, key,
                              s ? s : "null");
        out[i] = k;
    }
    *count = (int)n;
    return 0;
}

/* block_out_channels, which fixes the number of levels. */
static int read_channels(const struct kx_json *j, int *channels, int *levels, struct kn_err *err) {
    json_object *a = kx_json_get(j, "block_out_channels");
    if (!a || !json_object_is_type(a, json_type_array))
        return kn_err_set(err, KN_EPARSE, "%s: block_out_channels: a list of channels is needed", j->file);
    size_t n = json_object_array_length(a);
    if (n < 1 || n > KX_LEVELS_MAX)
        return kn_err_set(err, KN_EUNSUPPORTED, "%s: block_out_channels: %zu levels, not 1 to %d", j->file, n,
                          KX_LEVELS_MAX);
    *levels = (int)n;
    return kx_json_ints(j, "block_out_channels", 1, CHANNELS_MAX, channels, *levels, err);
}

static int check_groups(const struct kx_json *j, int groups, const int *channels, int levels,
                        struct kn_err *err) {
    for (int i = 0; i < levels; i++)
        if (channels[i] % groups)
            return kn_err_set(err, KN_EPARSE, "%s: norm_num_groups: %d does not divide %d channels", j->file,
                              groups, channels[i]);
    return 0;
}

/* ---- model_index.json ---- */

/* The class that a part of the pipeline has; NULL: there is none ([null, null], as writers leave it). A class
 * out of another library than the two is code that came with the model. */
static int part_class(const struct kx_json *j, const char *key, const char **out, struct kn_err *err) {
    json_object *v = kx_json_get(j, key);
    *out = NULL;
    if (!v || !json_object_is_type(v, json_type_array) || json_object_array_length(v) != 2) return 0;
    *out = json_object_get_string(json_object_array_get_idx(v, 1));
    const char *library = json_object_get_string(json_object_array_get_idx(v, 0));
    if (!*out || (library && (!strcmp(library, "diffusers") || !strcmp(library, "transformers")))) return 0;
    return kn_err_set(err, KN_EUNSUPPORTED, "%s: %s: %.64s of the library %.64s is not supported", j->file,
                      key, *out, library ? library : "null");
}

/* Looks the scheduler's class up among those that a sampler of kiln can be made from: its own, and those whose
 * settings diffusers' from_config() takes over. *own is KN_SAMPLER_UNSET for one of the latter. */
static bool scheduler_class(const char *name, enum kn_sampler *own) {
    static const char *const ours[] = {
#define SAMPLER_CLASS(id, value, a1111, comfy, diffusers, karras, automatic) diffusers,
        KN_SAMPLER_TABLE(SAMPLER_CLASS)
#undef SAMPLER_CLASS
    };
    static const char *const others[] = {
        "DDPMScheduler",          "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler",
        "DEISMultistepScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler", "LMSDiscreteScheduler",  "UniPCMultistepScheduler",
    };
    *own = KN_SAMPLER_UNSET;
    for (int i = 0; i < KN_SAMPLER_COUNT; i++)
        if (!strcmp(ours[i], name)) {
            *own = kn_samplers[i];
            return true;
        }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (!strcmp(others[i], name)) return true;
    return false;
}

static int read_scheduler_class(const struct kx_json *j, const char *name, struct kx_index *out,
                                struct kn_err *err) {
    if (strlen(name) > KN_NAME_MAX || !scheduler_class(name, &out->sampler))
        return kn_err_set(
            err, KN_EUNSUPPORTED,
            "%s: scheduler: kiln does not have %.64s, and none of its samplers (" KN_SAMPLER_LIST
            ") can stand in for it",
            j->file, name);
    snprintf(out->scheduler, sizeof out->scheduler, "%s", name);
    return 0;
}

int kx_config_index(const struct kx_json *j, struct kx_index *out, struct kn_err *err) {
    enum need { NEEDED, WITH_XL, NEVER };
    static const struct {
        const char *key, *names[3];
        enum need need;
    } parts[] = {
        {"text_encoder", {"CLIPTextModel"}, NEEDED},
        {"tokenizer", {"CLIPTokenizer", "CLIPTokenizerFast"}, NEEDED},
        {"unet", {"UNet2DConditionModel"}, NEEDED},
        {"vae", {"AutoencoderKL"}, NEEDED},
        {"scheduler", {NULL}, NEEDED}, /* read_scheduler_class() knows which */
        {"text_encoder_2", {"CLIPTextModelWithProjection"}, WITH_XL},
        {"tokenizer_2", {"CLIPTokenizer", "CLIPTokenizerFast"}, WITH_XL},
        {"image_encoder", {NULL}, NEVER},
        {"transformer", {NULL}, NEVER},
        {"controlnet", {NULL}, NEVER},
    };
    static const char *const classes[] = {"StableDiffusionPipeline", "StableDiffusionXLPipeline", NULL};
    *out = (struct kx_index){.zeros_for_none = true};
    if (!kx_json_get(j, "_class_name"))
        return kn_err_set(err, KN_EPARSE, "%s: _class_name: not there; is this a pipeline's folder?",
                          j->file);
    int k = 0, rc = kx_json_word(j, "_class_name", classes, &k, err);
    if (!rc) rc = kx_keys_check(&kx_keys_index, j, err);
    out->xl = k == 1;
    if (!rc) rc = kx_json_bool(j, "force_zeros_for_empty_prompt", &out->zeros_for_none, err);
    out->zeros_for_none &= out->xl;
    for (size_t i = 0; i < sizeof parts / sizeof *parts && !rc; i++) {
        const char *class;
        if ((rc = part_class(j, parts[i].key, &class, err))) break;
        bool needed = parts[i].need == NEEDED || (parts[i].need == WITH_XL && out->xl);
        if (!class && needed) {
            rc = kn_err_set(err, KN_EPARSE, "%s: %s: not there", j->file, parts[i].key);
        } else if (class && !needed) {
            rc = kn_err_set(err, KN_EUNSUPPORTED, "%s: %s: not supported (%.64s)", j->file, parts[i].key,
                            class);
        } else if (class && parts[i].names[0]) {
            bool ok = false;
            for (size_t q = 0; q < 3 && parts[i].names[q]; q++) ok |= !strcmp(parts[i].names[q], class);
            if (!ok)
                rc = kn_err_set(err, KN_EUNSUPPORTED, "%s: %s: %.64s is not supported", j->file, parts[i].key,
                                class);
        }
        if (!rc && class && !strcmp(parts[i].key, "scheduler")) rc = read_scheduler_class(j, class, out, err);
    }
    return rc;
}

/* ---- text_encoder/config.json ---- */

int kx_config_text(const struct kx_json *j, struct kx_text_config *out, struct kn_err *err) {
    *out = (struct kx_text_config){.vocab_size = 49408,
                                   .hidden_size = 512,
                                   .intermediate_size = 2048,
                                   .layers = 12,
                                   .heads = 8,
                                   .positions_max = 77,
                                   .quick_gelu = true,
                                   .layer_norm_eps = 1e-5f,
                                   .eos_token_id = 49407,
                                   .projection_dim = 512};
    static const char *const acts[] = {"gelu", "quick_gelu", NULL};
    int act = 1, rc = kx_keys_check(&kx_keys_text, j, err);
    if (!rc) rc = kx_json_word(j, "hidden_act", acts, &act, err);
    out->quick_gelu = act == 1;
    if (!rc) rc = kx_json_int(j, "vocab_size", 1, 1 << 20, &out->vocab_size, err);
    if (!rc) rc = kx_json_int(j, "hidden_size", 1, CHANNELS_MAX, &out->hidden_size, err);
    if (!rc) rc = kx_json_int(j, "intermediate_size", 1, 4 * CHANNELS_MAX, &out->intermediate_size, err);
    if (!rc) rc = kx_json_int(j, "num_hidden_layers", 1, 256, &out->layers, err);
    if (!rc) rc = kx_json_int(j, "num_attention_heads", 1, 256, &out->heads, err);
    if (!rc) rc = kx_json_int(j, "max_position_embeddings", 3, 4096, &out->positions_max, err);
    if (!rc) rc = kx_json_float(j, "layer_norm_eps", 0, 1, &out->layer_norm_eps, err);
    if (!rc) rc = kx_json_int(j, "eos_token_id", 0, 1 << 20, &out->eos_token_id, err);
    if (!rc) rc = kx_json_int(j, "projection_dim", 1, CHANNELS_MAX, &out->projection_dim, err);
    if (!rc && out->hidden_size % out->heads)
        rc = kn_err_set(err, KN_EPARSE, "%s: num_attention_heads: %d does not divide hidden_size %d", j->file,
                        out->heads, out->hidden_size);
    return rc;
}

/* ---- unet/config.json ---- */

/* The condition that is added to the time embedding: SDXL's pooled text and time_ids, or none. */
static int read_added_cond(const struct kx_json *j, struct kx_unet_config *out, struct kn_err *err) {
    static const char *const types[] = {"text_time", NULL};
    int type = -1, each = 0, all = 0, rc = kx_json_word(j, "addition_embed_type", types, &type, err);
    if (rc) return rc;
    if (type < 0) {
        rc = kx_json_only(j, "addition_time_embed_dim", "null", err);
        return rc ? rc : kx_json_only(j, "projection_class_embeddings_input_dim", "null", err);
    }
    rc = kx_json_int(j, "addition_time_embed_dim", 1, CHANNELS_MAX, &each, err);
    if (!rc) rc = kx_json_int(j, "projection_class_embeddings_input_dim", 1, 8 * CHANNELS_MAX, &all, err);
    if (rc) return rc;
    const char *key = each ? "projection_class_embeddings_input_dim" : "addition_time_embed_dim";
    if (!each || !all)
        return kn_err_set(err, KN_EPARSE, "%s: %s: not there, and addition_embed_type is text_time", j->file,
                          key);
    if (each % 2)
        return kn_err_set(err, KN_EUNSUPPORTED, "%s: addition_time_embed_dim: %d is odd", j->file, each);
    if (all <= KX_TIME_IDS * each)
        return kn_err_set(err, KN_EPARSE,
                          "%s: projection_class_embeddings_input_dim: %d leaves no room for a text beside %d "
                          "numbers of addition_time_embed_dim %d",
                          j->file, all, KX_TIME_IDS, each);
    out->addition_time_width = each;
    out->pooled_width = all - KX_TIME_IDS * each;
    return 0;
}

/* The kinds of blocks of each level, downwards and upwards. */
static int read_blocks(const struct kx_json *j, struct kx_unet_config *out, struct kn_err *err) {
    static const char *const keys[] = {"down_block_types", "up_block_types"};
    /* both in the order of enum kx_block_type */
    static const char *const downs[] = {"DownBlock2D", "CrossAttnDownBlock2D", NULL};
    static const char *const ups[] = {"UpBlock2D", "CrossAttnUpBlock2D", NULL};
    int n = out->levels;
    for (int side = 0; side < 2; side++) {
        int types[KX_LEVELS_MAX], count,
            rc = read_words(j, keys[side], side ? ups : downs, types, &count, err);
        if (rc) return rc;
        if (!count && n == 4) { /* the class's own default */
            for (int i = 0; i < 4; i++) types[i] = side ? i > 0 : i < 3;
            count = 4;
        }
        if (count != n)
            return kn_err_set(err, KN_EPARSE, "%s: %s: %d blocks for %d levels of block_out_channels",
                              j->file, keys[side], count, n);
        for (int i = 0; i < n; i++)
            (side ? out->up : out->down)[i] = types[i] ? KX_BLOCK_CROSS_ATTN : KX_BLOCK_PLAIN;
    }
    return 0;
}

/* The fields that may be given once for all levels, or level by level. */
static int read_levels(const struct kx_json *j, struct kx_unet_config *out, struct kn_err *err) {
    int n = out->levels, cross[KX_LEVELS_MAX];
    assert(n >= 1); /* read_channels() wants one */
    for (int i = 0; i < n; i++) {
        out->layers[i] = 2;
        out->heads[i] = 8;
        out->transformer_depth[i] = 1;
        cross[i] = out->cross_attention_dim;
    }
    int rc = kx_json_ints(j, "layers_per_block", 1, 16, out->layers, n, err);
    if (!rc) rc = kx_json_ints(j, "attention_head_dim", 1, 256, out->heads, n, err);
    if (!rc)
        rc = kx_json_ints(j, "transformer_layers_per_block", 1, KX_TRANSFORMER_DEPTH_MAX,
                          out->transformer_depth, n, err);
    if (!rc) rc = kx_json_ints(j, "cross_attention_dim", 1, CHANNELS_MAX, cross, n, err);
    for (int i = 1; i < n && !rc; i++)
        if (cross[i] != cross[0])
            rc = kn_err_set(err, KN_EUNSUPPORTED,
                            "%s: cross_attention_dim: different levels are not supported", j->file);
    out->cross_attention_dim = cross[0];
    return rc;
}

static int read_norms(const struct kx_json *j, struct kx_unet_config *out, struct kn_err *err) {
    int rc = kx_json_int(j, "norm_num_groups", 1, CHANNELS_MAX, &out->norm_groups, err);
    if (!rc) rc = check_groups(j, out->norm_groups, out->channels, out->levels, err);
    if (!rc) rc = kx_json_float(j, "norm_eps", 0, 1, &out->norm_eps, err);
    return rc;
}

/* Writers before 0.9.0 stated a wrong size; StableDiffusionPipeline takes 64 then. */
static int read_old_sample_size(const struct kx_json *j, struct kx_unet_config *out, struct kn_err *err) {
    const char *version = NULL;
    int major, minor, rc = kx_json_string(j, "_diffusers_version", &version, err);
    out->small_size_is_old =
        version && sscanf(version, "%d.%d", &major, &minor) == 2 && major == 0 && minor < 9;
    return rc;
}

static int read_sample_size(const struct kx_json *j, struct kx_unet_config *out, struct kn_err *err) {
    int size[2] = {0, 0}, rc = kx_json_ints(j, "sample_size", 0, KN_SIZE_MAX, size, 2, err);
    if (!rc && size[0] != size[1])
        rc = kn_err_set(err, KN_EUNSUPPORTED, "%s: sample_size: %d by %d is not a square", j->file, size[0],
                        size[1]);
    out->sample_size = size[0];
    return rc ? rc : read_old_sample_size(j, out, err);
}

/* Checks the levels' numbers against each other. */
static int check_levels(const struct kx_json *j, const struct kx_unet_config *c, struct kn_err *err) {
    if (c->channels[0] % 2)
        return kn_err_set(err, KN_EUNSUPPORTED, "%s: block_out_channels: %d is odd", j->file, c->channels[0]);
    for (int i = 0; i < c->levels; i++)
        if (c->channels[i] % c->heads[i] && (c->down[i] == KX_BLOCK_CROSS_ATTN || i == c->levels - 1))
            return kn_err_set(err, KN_EPARSE, "%s: attention_head_dim: %d heads do not divide %d channels",
                              j->file, c->heads[i], c->channels[i]);
    return 0;
}

int kx_config_unet(const struct kx_json *j, struct kx_unet_config *out, struct kn_err *err) {
    *out = (struct kx_unet_config){.in_channels = 4,
                                   .out_channels = 4,
                                   .cross_attention_dim = 1280,
                                   .norm_groups = 32,
                                   .norm_eps = 1e-5f,
                                   .flip_sin_to_cos = true};
    static const char *const acts[] = {"silu", "swish", NULL};
    int k, rc = kx_keys_check(&kx_keys_unet, j, err);
    if (!rc) rc = kx_json_word(j, "act_fn", acts, &k, err);
    if (!rc) rc = kx_json_int(j, "in_channels", 1, 256, &out->in_channels, err);
    if (!rc) rc = kx_json_int(j, "out_channels", 1, 256, &out->out_channels, err);
    if (!rc && out->in_channels != out->out_channels)
        rc = kn_err_set(err, KN_EUNSUPPORTED,
                        "%s: in_channels: %d for %d out_channels (inpainting, editing) is not supported",
                        j->file, out->in_channels, out->out_channels);
    if (!rc) rc = read_channels(j, out->channels, &out->levels, err);
    if (!rc) rc = read_blocks(j, out, err);
    if (!rc) rc = read_levels(j, out, err);
    if (!rc) rc = read_norms(j, out, err);
    if (!rc) rc = kx_json_bool(j, "use_linear_projection", &out->linear_projection, err);
    if (!rc) rc = kx_json_bool(j, "flip_sin_to_cos", &out->flip_sin_to_cos, err);
    if (!rc) rc = kx_json_float(j, "freq_shift", -1000, 1000, &out->freq_shift, err);
    if (!rc) rc = read_added_cond(j, out, err);
    if (!rc) rc = read_sample_size(j, out, err);
    if (!rc) rc = check_levels(j, out, err);
    return rc;
}

/* ---- vae/config.json ---- */

int kx_config_vae(const struct kx_json *j, struct kx_vae_config *out, struct kn_err *err) {
    *out = (struct kx_vae_config){.latent_channels = 4,
                                  .out_channels = 3,
                                  .layers_per_block = 1,
                                  .norm_groups = 32,
                                  .scaling_factor = 0.18215f,
                                  .mid_attention = true,
                                  .post_quant_conv = true};
    static const char *const acts[] = {"silu", "swish", NULL};
    static const char *const ups[] = {"UpDecoderBlock2D", NULL};
    int k, types[KX_LEVELS_MAX], count, rc = kx_keys_check(&kx_keys_vae, j, err);
    if (!rc) rc = kx_json_word(j, "act_fn", acts, &k, err);
    if (!rc) rc = kx_json_int(j, "latent_channels", 1, 256, &out->latent_channels, err);
    if (!rc) rc = read_channels(j, out->channels, &out->levels, err);
    if (!rc) rc = read_words(j, "up_block_types", ups, types, &count, err);
    if (!rc && (count ? count : 1) != out->levels)
        rc = kn_err_set(err, KN_EPARSE, "%s: up_block_types: %d blocks for %d levels of block_out_channels",
                        j->file, count, out->levels);
    if (!rc) rc = kx_json_int(j, "layers_per_block", 1, 16, &out->layers_per_block, err);
    if (!rc) rc = kx_json_int(j, "norm_num_groups", 1, CHANNELS_MAX, &out->norm_groups, err);
    if (!rc) rc = check_groups(j, out->norm_groups, out->channels, out->levels, err);
    if (!rc) rc = kx_json_float(j, "scaling_factor", 1e-6, 1e6, &out->scaling_factor, err);
    if (!rc) rc = kx_json_bool(j, "mid_block_add_attention", &out->mid_attention, err);
    if (!rc) rc = kx_json_bool(j, "use_post_quant_conv", &out->post_quant_conv, err);
    if (!rc) rc = kx_json_bool(j, "force_upcast", &out->force_upcast, err);
    out->factor = 1 << (out->levels > 0 ? out->levels - 1 : 0);
    return rc;
}

/* ---- scheduler/scheduler_config.json ---- */

/* Holds every key against the table. A value that kiln has not is no fault of the samplers whose class does not
 * read the key: they can still be asked for. */
static int check_scheduler(const struct kx_json *j, struct kx_scheduler_config *c, struct kn_err *err) {
    json_object_object_foreach(j->o, key, value) {
        const struct kx_key *row = kx_key_find(&kx_keys_scheduler, key);
        struct kn_err why = {0};
        int rc = kx_key_check(&kx_keys_scheduler, j->file, key, value, &why);
        if (!rc) continue;
        if (!row || !row->samplers) return kn_err_set(err, rc, "%s", why.text);
        for (int i = 0; i < KN_SAMPLER_COUNT; i++) {
            enum kn_sampler s = kn_samplers[i];
            if (!(row->samplers & 1u << s) || c->unsupported & 1u << s) continue;
            c->unsupported |= 1u << s;
            snprintf(c->unsupported_field[s], sizeof c->unsupported_field[s], "%s: %.60s", key,
                     json_object_to_json_string_ext(value, JSON_C_TO_STRING_PLAIN));
        }
        if (c->unsupported == KN_SAMPLER_MASK) return kn_err_set(err, rc, "%s", why.text);
    }
    return 0;
}

#define READ_STATED(kind, name, ...)                                                                         \
    do {                                                                                                     \
        out->name##_stated = kx_json_get(j, #name) != NULL;                                                  \
        if (!rc) rc = kx_json_##kind(j, #name, __VA_ARGS__, &out->name, err);                                \
    } while (0)

static int read_stated_bool(const struct kx_json *j, const char *key, bool *v, bool *stated,
                            struct kn_err *err) {
    *stated = kx_json_get(j, key) != NULL;
    return kx_json_bool(j, key, v, err);
}

static int read_stated_word(const struct kx_json *j, const char *key, const char *const *words, int *v,
                            bool *stated, struct kn_err *err) {
    *stated = kx_json_get(j, key) != NULL;
    return kx_json_word(j, key, words, v, err);
}

int kx_config_scheduler(const struct kx_json *j, struct kx_scheduler_config *out, struct kn_err *err) {
    *out = (struct kx_scheduler_config){0};
    const char *class = NULL, *type = NULL;
    int rc = kx_json_string(j, "_class_name", &class, err);
    if (!rc && !(class && scheduler_class(class, &out->own))) out->own = KN_SAMPLER_UNSET;
    if (!rc) rc = check_scheduler(j, out, err);
    if (rc) return rc;
    READ_STATED(int, num_train_timesteps, 2, KX_TRAIN_STEPS_MAX);
    READ_STATED(double, beta_start, 0, 1);
    READ_STATED(double, beta_end, 0, 1);
    READ_STATED(int, steps_offset, 0, KX_TRAIN_STEPS_MAX);
    READ_STATED(double, clip_sample_range, 0, 1e6);
    READ_STATED(double, sigma_min, 0, 1e6);
    READ_STATED(double, sigma_max, 0, 1e6);
    READ_STATED(int, solver_order, 1, 3);
    READ_STATED(double, lambda_min_clipped, -(double)INFINITY, 1e6);
    static const char *const betas[] = {"linear", "scaled_linear", "squaredcos_cap_v2", NULL};
    static const char *const predictions[] = {"epsilon", "v_prediction", "sample", NULL};
    static const char *const spacings[] = {"linspace", "leading", "trailing", NULL};
    static const char *const finals[] = {"zero", "sigma_min", NULL};
    int beta = 0, prediction = 0, spacing = 0, final = 0;
    if (!rc) rc = read_stated_word(j, "beta_schedule", betas, &beta, &out->beta_schedule_stated, err);
    if (!rc)
        rc = read_stated_word(j, "prediction_type", predictions, &prediction, &out->prediction_type_stated,
                              err);
    if (!rc)
        rc = read_stated_word(j, "timestep_spacing", spacings, &spacing, &out->timestep_spacing_stated, err);
    if (!rc) rc = read_stated_word(j, "final_sigmas_type", finals, &final, &out->final_sigma_min_stated, err);
    out->beta_schedule = (enum kx_beta)beta; /* the lists are in the enums' order */
    out->prediction_type = (enum kx_prediction)prediction;
    out->timestep_spacing = (enum kx_spacing)spacing;
    out->final_sigma_min = final == 1;
    const struct {
        const char *key;
        bool *v, *stated;
    } bools[] = {
        {"rescale_betas_zero_snr", &out->rescale_betas_zero_snr, &out->rescale_betas_zero_snr_stated},
        {"set_alpha_to_one", &out->set_alpha_to_one, &out->set_alpha_to_one_stated},
        {"clip_sample", &out->clip_sample, &out->clip_sample_stated},
        {"skip_prk_steps", &out->skip_prk_steps, &out->skip_prk_steps_stated},
        {"use_karras_sigmas", &out->use_karras_sigmas, &out->use_karras_sigmas_stated},
        {"lower_order_final", &out->lower_order_final, &out->lower_order_final_stated},
        {"euler_at_final", &out->euler_at_final, &out->euler_at_final_stated},
    };
    for (size_t i = 0; i < sizeof bools / sizeof *bools && !rc; i++)
        rc = read_stated_bool(j, bools[i].key, bools[i].v, bools[i].stated, err);
    if (rc) return rc;

    rc = kx_json_string(j, "solver_type", &type, err);
    out->solver_heun_stated = type != NULL;
    out->solver_heun = type && !strcmp(type, "heun");
    return rc;
}

void kx_config_scheduler_class(struct kx_scheduler_config *c, const struct kx_index *index) {
    c->own = index->sampler; /* whatever class the scheduler's file names */
    /* These two put a word of their own in the place of "heun", which others then read as midpoint. */
    if (!strcmp(index->scheduler, "DEISMultistepScheduler") ||
        !strcmp(index->scheduler, "UniPCMultistepScheduler"))
        c->solver_heun = false;
}

void kx_config_scheduler_defaults(const struct kx_scheduler_config *c, struct kn_defaults *out) {
    out->sampler = c->own;
    out->karras = c->use_karras_sigmas;
    out->schedule = out->karras && kn_sampler_reads_karras(c->own) ? KN_SCHEDULE_KARRAS : KN_SCHEDULE_NORMAL;
}

/* ---- kiln.json ---- */

int kx_config_defaults(const struct kx_json *j, struct kn_defaults *out, struct kn_err *err) {
    static const char *const known[] = {"sampler", "schedule", "steps", "cfg", "size", NULL};
    json_object_object_foreach(j->o, key, unused) {
        (void)unused;
        int i = 0;
        while (known[i] && strcmp(known[i], key)) i++;
        if (known[i]) continue;
        const char *near = kn_suggest(key, known);
        return kn_err_set(err, KN_EPARSE, "%s: %.64s: unknown%s%s%s", j->file, key,
                          near ? ", did you mean " : "", near ? near : "", near ? "?" : "");
    }
    const char *sampler = NULL, *schedule = NULL, *size = NULL;
    int steps = (int)out->steps;
    int rc = kx_json_string(j, "sampler", &sampler, err);
    if (!rc) rc = kx_json_string(j, "schedule", &schedule, err);
    if (!rc) rc = kx_json_string(j, "size", &size, err);
    if (!rc) rc = kx_json_int(j, "steps", KN_STEPS_MIN, KN_STEPS_MAX, &steps, err);
    if (!rc) rc = kx_json_float(j, "cfg", KN_CFG_MIN, KN_CFG_MAX, &out->cfg, err);
    out->steps = (uint32_t)steps;
    if (rc) return rc;
    const char *field = "sampler";
    if (sampler) rc = kn_sampler_parse(sampler, &out->sampler, err);
    if (!rc && schedule) field = "schedule", rc = kn_schedule_parse(schedule, &out->schedule, err);
    if (!rc && size) field = "size", rc = kn_size_parse(size, &out->width, &out->height, err);
    if (rc) return kn_err_prefix(err, "%s: %s", j->file, field);
    if (schedule) out->karras = false; /* says it for the folder */
    if (sampler && !schedule)
        out->schedule =
            out->karras && kn_sampler_reads_karras(out->sampler) ? KN_SCHEDULE_KARRAS : KN_SCHEDULE_NORMAL;
    if (schedule && out->sampler && !kn_schedule_fits(out->sampler, out->schedule))
        return kn_err_set(err, KN_EPARSE, "%s: schedule: %s means nothing with %s", j->file, schedule,
                          kn_sampler_name(out->sampler));
    return 0;
}

/* ---- the folder ---- */

static int read_part(const char *dir, const char *file, struct kx_json *j, char path[KN_PATH_MAX],
                     struct kn_err *err) {
    *j = (struct kx_json){.file = path};
    int rc = kn_fs_join(path, KN_PATH_MAX, dir, file);
    if (rc) return kn_err_set(err, rc, "%s: path too long", dir);
    return kx_json_load(path, j, err);
}

/* Reads a part's file with `read`; a failure is the caller's. */
#define READ_PART(dir, file, read, out, err)                                                                 \
    do {                                                                                                     \
        char part_path[KN_PATH_MAX];                                                                         \
        struct kx_json part;                                                                                 \
        int part_rc = read_part(dir, file, &part, part_path, err);                                           \
        if (!part_rc) part_rc = read(&part, out, err);                                                       \
        json_object_put(part.o);                                                                             \
        if (part_rc) return part_rc;                                                                         \
    } while (0)

/* Checks the parts against each other. */
static int check_parts(const char *dir, const struct kx_config *c, struct kn_err *err) {
    if (c->unet.in_channels != c->vae.latent_channels)
        return kn_err_set(err, KN_EPARSE, "%s: unet has %d in_channels, vae %d latent_channels", dir,
                          c->unet.in_channels, c->vae.latent_channels);
    const char *type = c->index.xl ? "StableDiffusionXLPipeline" : "StableDiffusionPipeline";
    if (c->index.xl != (c->unet.addition_time_width > 0))
        return kn_err_set(err, KN_EUNSUPPORTED, "%s: unet/config.json: addition_embed_type: %s in a %s", dir,
                          c->index.xl ? "null" : "text_time", type);
    if (!c->index.xl) {
        if (c->unet.cross_attention_dim != c->text.hidden_size)
            return kn_err_set(err, KN_EPARSE,
                              "%s: unet has cross_attention_dim %d, text_encoder hidden_size %d", dir,
                              c->unet.cross_attention_dim, c->text.hidden_size);
        return 0;
    }
    if (c->unet.cross_attention_dim != c->text.hidden_size + c->text2.hidden_size)
        return kn_err_set(err, KN_EPARSE,
                          "%s: unet has cross_attention_dim %d, the text encoders' hidden_size %d and %d",
                          dir, c->unet.cross_attention_dim, c->text.hidden_size, c->text2.hidden_size);
    if (c->unet.pooled_width != c->text2.projection_dim)
        return kn_err_set(err, KN_EPARSE,
                          "%s: unet's projection_class_embeddings_input_dim leaves %d for the pooled text, "
                          "text_encoder_2 has projection_dim %d",
                          dir, c->unet.pooled_width, c->text2.projection_dim);
    return 0;
}

int kx_config_read(const char *dir, struct kx_config *out, struct kn_err *err) {
    *out = (struct kx_config){0};
    READ_PART(dir, "model_index.json", kx_config_index, &out->index, err);
    READ_PART(dir, "text_encoder/config.json", kx_config_text, &out->text, err);
    if (out->index.xl) {
        READ_PART(dir, "text_encoder_2/config.json", kx_config_text, &out->text2, err);
        out->text.penultimate = out->text2.penultimate = out->text2.projected = true;
    }
    READ_PART(dir, "unet/config.json", kx_config_unet, &out->unet, err);
    READ_PART(dir, "vae/config.json", kx_config_vae, &out->vae, err);
    READ_PART(dir, "scheduler/scheduler_config.json", kx_config_scheduler, &out->scheduler, err);
    kx_config_scheduler_class(&out->scheduler, &out->index);
    out->scheduler.pipeline = !out->index.xl; /* XL's pipeline takes the file as it is */
    int rc = check_parts(dir, out, err);
    if (rc) return rc;
    out->size_multiple = out->vae.factor << (out->unet.levels - 1);

    struct kn_defaults *d = &out->defaults;
    int native = out->unet.sample_size ? out->unet.sample_size : 64;
    if (!out->index.xl && out->unet.small_size_is_old && native < 64) native = 64;
    native *= out->vae.factor;
    d->sampler = out->scheduler.own;
    d->karras = out->scheduler.use_karras_sigmas;
    d->schedule = d->karras && kn_sampler_reads_karras(d->sampler) ? KN_SCHEDULE_KARRAS : KN_SCHEDULE_NORMAL;
    d->steps = 20;
    d->cfg = 7;
    d->width = d->height = (uint32_t)native;
    char path[KN_PATH_MAX];
    rc = kn_fs_join(path, sizeof path, dir, "kiln.json");
    if (rc || !kn_fs_exists(path)) return 0;
    READ_PART(dir, "kiln.json", kx_config_defaults, d, err);
    return 0;
}
