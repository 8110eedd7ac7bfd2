/* The reader of a model's configs: what old and new folders write is read alike; what kiln has not is refused
 * with file, field and value. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "kernels/io/config.h"
#include "kernels/io/config_keys.h"
#include "kernels/text/tokenizer.h"
#include "tests/unit/check.h"

static struct kx_json json_of(const char *file, const char *text) {
    struct kx_json j;
    struct kn_err err = {0};
    CHECK_MSG(!kx_json_parse(file, text, strlen(text), &j, &err), "%s", err.text);
    return j;
}

TEST(sd15s_own_unet_file_is_read) {
    struct kx_json j = json_of(
        "unet/config.json",
        "{\"_class_name\":\"UNet2DConditionModel\",\"_diffusers_version\":\"0.6.0\",\"act_fn\":\"silu\","
        "\"attention_head_dim\":8,\"block_out_channels\":[320,640,1280,1280],\"center_input_sample\":false,"
        "\"cross_attention_dim\":768,\"down_block_types\":[\"CrossAttnDownBlock2D\",\"CrossAttnDownBlock2D\","
        "\"CrossAttnDownBlock2D\",\"DownBlock2D\"],\"downsample_padding\":1,\"flip_sin_to_cos\":true,"
        "\"freq_shift\":0,\"in_channels\":4,\"layers_per_block\":2,\"mid_block_scale_factor\":1,"
        "\"norm_eps\":1e-05,\"norm_num_groups\":32,\"out_channels\":4,\"sample_size\":64,"
        "\"up_block_types\":[\"UpBlock2D\",\"CrossAttnUpBlock2D\",\"CrossAttnUpBlock2D\","
        "\"CrossAttnUpBlock2D\"]}");
    struct kx_unet_config u;
    struct kn_err err = {0};
    CHECK_MSG(!kx_config_unet(&j, &u, &err), "%s", err.text);
    CHECK(u.levels == 4 && u.channels[3] == 1280 && u.heads[2] == 8 && u.layers[0] == 2 &&
          u.cross_attention_dim == 768);
    CHECK(u.down[3] == KX_BLOCK_PLAIN && u.up[0] == KX_BLOCK_PLAIN && u.up[3] == KX_BLOCK_CROSS_ATTN);
    CHECK(!u.linear_projection && u.flip_sin_to_cos && u.sample_size == 64 && u.norm_groups == 32);
    json_object_put(j.o);
}

/* A small UNet that is supported, with one field put in. */
static int unet_with(const char *field, struct kn_err *err) {
    char text[1024];
    snprintf(text, sizeof text,
             "{%s%s\"block_out_channels\":[8,16],\"norm_num_groups\":4,\"attention_head_dim\":2,\"down_block_"
             "types\":"
             "[\"CrossAttnDownBlock2D\",\"DownBlock2D\"],\"up_block_types\":[\"UpBlock2D\","
             "\"CrossAttnUpBlock2D\"]}",
             field, *field ? "," : "");
    struct kx_json j = json_of("unet/config.json", text);
    struct kx_unet_config u;
    int rc = kx_config_unet(&j, &u, err);
    json_object_put(j.o);
    return rc;
}

TEST(every_option_of_the_unet_that_kiln_has_not_is_refused_by_name) {
    static const char *const fields[] = {
        "\"act_fn\":\"mish\"",
        "\"center_input_sample\":true",
        "\"mid_block_type\":\"UNetMidBlock2DSimpleCrossAttn\"",
        "\"only_cross_attention\":true",
        "\"only_cross_attention\":[true,false]",
        "\"downsample_padding\":0",
        "\"mid_block_scale_factor\":2",
        "\"num_attention_heads\":4",
        "\"dual_cross_attention\":true",
        "\"class_embed_type\":\"timestep\"",
        "\"num_class_embeds\":10",
        "\"addition_embed_type\":\"text\"",
        "\"addition_embed_type\":\"text_image\"",
        "\"addition_time_embed_dim\":256",
        "\"encoder_hid_dim\":64",
        "\"encoder_hid_dim_type\":\"text_proj\"",
        "\"reverse_transformer_layers_per_block\":[[1],[1]]",
        "\"resnet_time_scale_shift\":\"scale_shift\"",
        "\"resnet_skip_time_act\":true",
        "\"resnet_out_scale_factor\":1.5",
        "\"time_embedding_type\":\"fourier\"",
        "\"time_embedding_dim\":64",
        "\"time_embedding_act_fn\":\"silu\"",
        "\"timestep_post_act\":\"silu\"",
        "\"time_cond_proj_dim\":256",
        "\"conv_in_kernel\":1",
        "\"conv_out_kernel\":1",
        "\"projection_class_embeddings_input_dim\":2816",
        "\"attention_type\":\"gated\"",
        "\"class_embeddings_concat\":true",
        "\"mid_block_only_cross_attention\":true",
        "\"cross_attention_norm\":\"layer_norm\"",
        "\"in_channels\":9",
        "\"cross_attention_dim\":[8,16]",
        "\"transformer_layers_per_block\":[[1],[2]]",
        "\"sample_size\":[8,16]",
        "\"_class_name\":\"UNet2DModel\"",
    };
    struct kn_err err = {0};
    CHECK_MSG(!unet_with("", &err), "%s", err.text);
    CHECK_MSG(
        !unet_with(
            "\"act_fn\":\"swish\",\"class_embed_type\":null,\"resnet_out_scale_factor\":1.0,\"dropout\":0.1",
            &err),
        "%s", err.text);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        char name[64];
        CHECK(sscanf(fields[i], "\"%63[^\"]\"", name) == 1);
        CHECK_MSG(unet_with(fields[i], &err) == KN_EUNSUPPORTED, "%s", fields[i]);
        CHECK_MSG(strstr(err.text, "unet/config.json: ") && strstr(err.text, name), "%s: %s", fields[i],
                  err.text);
    }
}

TEST(numbers_that_cannot_be_are_refused_by_name) {
    static const char *const fields[] = {
        "\"layers_per_block\":0",
        "\"layers_per_block\":[1]",
        "\"layers_per_block\":\"2\"",
        "\"layers_per_block\":1.5",
        "\"norm_eps\":-1",
        "\"freq_shift\":\"0\"",
        "\"use_linear_projection\":1",
        "\"in_channels\":0",
        "\"cross_attention_dim\":1e99",
        "\"transformer_layers_per_block\":17",
    };
    struct kn_err err = {0};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        char name[64];
        CHECK(sscanf(fields[i], "\"%63[^\"]\"", name) == 1);
        CHECK_MSG(unet_with(fields[i], &err) == KN_EPARSE, "%s: %s", fields[i], err.text);
        CHECK_MSG(strstr(err.text, name), "%s: %s", fields[i], err.text);
    }
    struct kx_json j = json_of("u", "{\"block_out_channels\":[8,12],\"norm_num_groups\":8}");
    struct kx_unet_config u;
    CHECK_INT(kx_config_unet(&j, &u, &err), KN_EPARSE);
    json_object_put(j.o);
    j = json_of("u",
                "{\"block_out_channels\":[8,16],\"norm_num_groups\":null,\"down_block_types\":["
                "\"DownBlock2D\",\"DownBlock2D\"],"
                "\"up_block_types\":[\"UpBlock2D\",\"UpBlock2D\"]}");
    CHECK_INT(kx_config_unet(&j, &u, &err), KN_EUNSUPPORTED);
    json_object_put(j.o);
    j = json_of("u", "{\"block_out_channels\":[8,16,16,16,16,16,16,16,16]}");
    CHECK_INT(kx_config_unet(&j, &u, &err), KN_EUNSUPPORTED);
    json_object_put(j.o);
}

TEST(sdxls_own_unet_file_is_read) {
    struct kx_json j = json_of(
        "unet/config.json",
        "{\"_class_name\":\"UNet2DConditionModel\",\"_diffusers_version\":\"0.19.0.dev0\",\"act_fn\":"
        "\"silu\",\"addition_embed_type\":\"text_time\",\"addition_embed_type_num_heads\":64,"
        "\"addition_time_embed_dim\":256,\"attention_head_dim\":[5,10,20],\"block_out_channels\":[320,640,"
        "1280],\"center_input_sample\":false,\"class_embed_type\":null,\"class_embeddings_concat\":false,"
        "\"conv_in_kernel\":3,\"conv_out_kernel\":3,\"cross_attention_dim\":2048,\"cross_attention_norm\":"
        "null,\"down_block_types\":[\"DownBlock2D\",\"CrossAttnDownBlock2D\",\"CrossAttnDownBlock2D\"],"
        "\"downsample_padding\":1,\"dual_cross_attention\":false,\"encoder_hid_dim\":null,"
        "\"encoder_hid_dim_type\":null,\"flip_sin_to_cos\":true,\"freq_shift\":0,\"in_channels\":4,"
        "\"layers_per_block\":2,\"mid_block_only_cross_attention\":null,\"mid_block_scale_factor\":1,"
        "\"mid_block_type\":\"UNetMidBlock2DCrossAttn\",\"norm_eps\":1e-05,\"norm_num_groups\":32,"
        "\"num_attention_heads\":null,\"num_class_embeds\":null,\"only_cross_attention\":false,"
        "\"out_channels\":4,\"projection_class_embeddings_input_dim\":2816,\"resnet_out_scale_factor\":1.0,"
        "\"resnet_skip_time_act\":false,\"resnet_time_scale_shift\":\"default\",\"sample_size\":128,"
        "\"time_cond_proj_dim\":null,\"time_embedding_act_fn\":null,\"time_embedding_dim\":null,"
        "\"time_embedding_type\":\"positional\",\"timestep_post_act\":null,\"transformer_layers_per_block\":"
        "[1,2,10],\"up_block_types\":[\"CrossAttnUpBlock2D\",\"CrossAttnUpBlock2D\",\"UpBlock2D\"],"
        "\"upcast_attention\":null,\"use_linear_projection\":true}");
    struct kx_unet_config u;
    struct kn_err err = {0};
    CHECK_MSG(!kx_config_unet(&j, &u, &err), "%s", err.text);
    CHECK(u.levels == 3 && u.cross_attention_dim == 2048 && u.sample_size == 128 && u.linear_projection);
    CHECK(u.heads[0] == 5 && u.heads[1] == 10 && u.heads[2] == 20);
    CHECK(u.transformer_depth[1] == 2 && u.transformer_depth[2] == 10);
    CHECK(u.down[0] == KX_BLOCK_PLAIN && u.up[2] == KX_BLOCK_PLAIN && u.up[0] == KX_BLOCK_CROSS_ATTN);
    CHECK(u.addition_time_width == 256 && u.pooled_width == 1280);
    json_object_put(j.o);
}

TEST(pooled_text_and_sizes_must_fit_the_embedding_that_they_share) {
    static const struct {
        const char *fields, *name;
        int rc;
    } rows[] = {
        {"\"addition_embed_type\":\"text_time\",\"addition_time_embed_dim\":8,"
         "\"projection_class_embeddings_input_dim\":49",
         NULL, 0},
        {"\"addition_embed_type\":\"text_time\"", "addition_time_embed_dim", KN_EPARSE},
        {"\"addition_embed_type\":\"text_time\",\"addition_time_embed_dim\":8",
         "projection_class_embeddings_input_dim", KN_EPARSE},
        {"\"addition_embed_type\":\"text_time\",\"addition_time_embed_dim\":8,"
         "\"projection_class_embeddings_input_dim\":48",
         "projection_class_embeddings_input_dim", KN_EPARSE},
        {"\"addition_embed_type\":\"text_time\",\"addition_time_embed_dim\":7,"
         "\"projection_class_embeddings_input_dim\":99",
         "addition_time_embed_dim", KN_EUNSUPPORTED},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct kn_err err = {0};
        CHECK_MSG(unet_with(rows[i].fields, &err) == rows[i].rc, "%s: %s", rows[i].fields, err.text);
        if (rows[i].rc) CHECK_MSG(strstr(err.text, rows[i].name), "%s", err.text);
    }
}

static int index_of(const char *text, struct kx_index *out, struct kn_err *err) {
    struct kx_json j = json_of("model_index.json", text);
    int rc = kx_config_index(&j, out, err);
    json_object_put(j.o);
    return rc;
}

#define PARTS                                                                                                \
    "\"tokenizer\":[\"transformers\",\"CLIPTokenizer\"],\"text_encoder\":[\"transformers\","                 \
    "\"CLIPTextModel\"],"                                                                                    \
    "\"unet\":[\"diffusers\",\"UNet2DConditionModel\"],\"vae\":[\"diffusers\",\"AutoencoderKL\"],"           \
    "\"scheduler\":[\"diffusers\",\"PNDMScheduler\"]"
#define SECOND                                                                                               \
    "\"tokenizer_2\":[\"transformers\",\"CLIPTokenizer\"],\"text_encoder_2\":[\"transformers\","             \
    "\"CLIPTextModelWithProjection\"]"

TEST(pipelines_of_other_kinds_are_refused_by_name) {
    static const struct {
        const char *text, *name;
        int rc;
    } rows[] = {
        {"{\"_class_name\":\"StableDiffusionPipeline\",\"image_encoder\":[\"transformers\",\"X\"]," PARTS "}",
         "image_encoder", KN_EUNSUPPORTED},
        {"{\"_class_name\":\"StableDiffusionPipeline\"," SECOND "," PARTS "}", "text_encoder_2",
         KN_EUNSUPPORTED},
        {"{\"_class_name\":\"StableDiffusionPipeline\",\"unet\":[\"diffusers\",\"Other\"]}", "text_encoder",
         KN_EPARSE},
        {"{\"_class_name\":\"StableDiffusionXLPipeline\"," PARTS "}", "text_encoder_2", KN_EPARSE},
        {"{\"_class_name\":\"StableDiffusionXLPipeline\",\"tokenizer_2\":[null,null],\"text_encoder_2\":"
         "[\"transformers\",\"CLIPTextModelWithProjection\"]," PARTS "}",
         "tokenizer_2", KN_EPARSE},
        {"{\"_class_name\":\"StableDiffusionXLPipeline\",\"tokenizer_2\":[\"transformers\",\"T5Tokenizer\"],"
         "\"text_encoder_2\":[\"transformers\",\"CLIPTextModelWithProjection\"]," PARTS "}",
         "tokenizer_2: T5Tokenizer", KN_EUNSUPPORTED},
        {"{\"_class_name\":\"StableDiffusionXLPipeline\",\"force_zeros_for_empty_prompt\":1," SECOND "," PARTS
         "}",
         "force_zeros_for_empty_prompt", KN_EPARSE},
        {"{\"_class_name\":\"StableDiffusionXLImg2ImgPipeline\"," SECOND "," PARTS "}",
         "StableDiffusionXLImg2ImgPipeline", KN_EUNSUPPORTED}, /* XL's refiner */
        {"{" PARTS "}", "_class_name", KN_EPARSE},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct kx_index x;
        struct kn_err err = {0};
        CHECK_MSG(index_of(rows[i].text, &x, &err) == rows[i].rc, "%s: %s", rows[i].text, err.text);
        CHECK_MSG(strstr(err.text, "model_index.json: ") && strstr(err.text, rows[i].name), "%s", err.text);
    }
}

TEST(both_pipelines_are_told_apart) {
    struct kx_index x;
    struct kn_err err = {0};
    CHECK_MSG(!index_of("{\"_class_name\":\"StableDiffusionPipeline\",\"safety_checker\":[null,null],"
                        "\"text_encoder_2\":[null,null]," PARTS "}",
                        &x, &err),
              "%s", err.text);
    CHECK(!x.xl && !x.zeros_for_none);
    CHECK_MSG(!index_of("{\"_class_name\":\"StableDiffusionXLPipeline\"," SECOND "," PARTS "}", &x, &err),
              "%s", err.text);
    CHECK(x.xl && x.zeros_for_none); /* the class's default */
    CHECK_MSG(!index_of("{\"_class_name\":\"StableDiffusionXLPipeline\",\"force_zeros_for_empty_prompt\":"
                        "false,\"image_encoder\":[null,null]," SECOND "," PARTS "}",
                        &x, &err),
              "%s", err.text);
    CHECK(x.xl && !x.zeros_for_none);
}

static int scheduler_of(const char *text, struct kx_scheduler_config *c, struct kn_err *err) {
    struct kx_json j = json_of("scheduler_config.json", text);
    int rc = kx_config_scheduler(&j, c, err);
    json_object_put(j.o);
    return rc;
}

TEST(scheduler_config_keeps_apart_what_is_stated) {
    struct kx_scheduler_config c;
    struct kn_err err = {0};
    CHECK_MSG(
        !scheduler_of(
            "{\"_class_name\":\"DPMSolverMultistepScheduler\",\"lambda_min_clipped\":-Infinity,\"steps_"
            "offset\":0,"
            "\"final_sigmas_type\":\"sigma_min\",\"variance_type\":null,\"timestep_spacing\":\"trailing\"}",
            &c, &err),
        "%s", err.text);
    CHECK_INT(c.own, KN_SAMPLER_DPMPP_2M);
    CHECK(c.steps_offset_stated && !c.beta_start_stated && c.final_sigma_min &&
          c.timestep_spacing == KX_SPACING_TRAILING);
    CHECK_INT(c.unsupported, 0);
}

TEST(scheduler_options_are_refused_only_for_the_samplers_that_read_them) {
    struct kx_scheduler_config c;
    struct kn_err err = {0};
    CHECK_INT(scheduler_of("{\"_class_name\":\"DDIMScheduler\",\"thresholding\":true}", &c, &err), 0);
    CHECK_INT(c.unsupported, 1u << KN_SAMPLER_DDIM | 1u << KN_SAMPLER_DPMPP_2M);
    CHECK_STR(c.unsupported_field[KN_SAMPLER_DDIM], "thresholding: true");
    CHECK_INT(scheduler_of(
                  "{\"_class_name\":\"DPMSolverMultistepScheduler\",\"algorithm_type\":\"sde-dpmsolver++\"}",
                  &c, &err),
              0);
    CHECK_INT(c.unsupported, 1u << KN_SAMPLER_DPMPP_2M);
    CHECK_INT(scheduler_of("{\"_class_name\":\"DDIMScheduler\",\"trained_betas\":[0.1,0.2]}", &c, &err),
              KN_EUNSUPPORTED);
    CHECK(strstr(err.text, "trained_betas"));
    CHECK_INT(scheduler_of("{\"_class_name\":\"DDIMScheduler\",\"prediction_type\":\"flow\"}", &c, &err),
              KN_EUNSUPPORTED);
    CHECK_INT(scheduler_of("{\"_class_name\":\"UniPCMultistepScheduler\"}", &c, &err), 0);
    CHECK_INT(c.own, KN_SAMPLER_UNSET);
}

/* ---- every key of the tables ---- */

/* A sound file of each kind, small, into which the tests put one key. */
static const char *sound(const struct kx_key_table *t) {
    if (t == &kx_keys_index) return "{\"_class_name\":\"StableDiffusionXLPipeline\"," PARTS "," SECOND "}";
    if (t == &kx_keys_unet)
        return "{\"block_out_channels\":[8,16],\"norm_num_groups\":4,\"attention_head_dim\":2,"
               "\"down_block_types\":[\"CrossAttnDownBlock2D\",\"DownBlock2D\"],"
               "\"up_block_types\":[\"UpBlock2D\",\"CrossAttnUpBlock2D\"]}";
    if (t == &kx_keys_vae) return "{\"block_out_channels\":[32]}";
    if (t == &kx_keys_tokenizer)
        return "{\"model\":{\"vocab\":{\"a\":0,\"<|startoftext|>\":1,\"<|endoftext|>\":2},\"merges\":[]}}";
    if (t == &kx_keys_tokenizer_model)
        return "{\"vocab\":{\"a\":0,\"<|startoftext|>\":1,\"<|endoftext|>\":2},\"merges\":[]}";
    return "{}";
}

static int read_tokenizer(const struct kx_key_table *t, const char *text, struct kn_err *err) {
    static const char vocab[] = "{\"a\":0,\"<|startoftext|>\":1,\"<|endoftext|>\":2}";
    static char whole[8192];
    struct kx_tokenizer_files f = {
        .vocab = vocab, .vocab_len = sizeof vocab - 1, .merges = "#version\n", .merges_len = 9};
    if (t == &kx_keys_tokenizer_model) {
        snprintf(whole, sizeof whole, "{\"model\":%s}", text);
        text = whole;
    }
    if (t == &kx_keys_tokenizer_config)
        f.config = text, f.config_len = strlen(text);
    else if (t == &kx_keys_special_tokens)
        f.special = text, f.special_len = strlen(text);
    else
        f.tokenizer = text, f.tokenizer_len = strlen(text);
    struct kx_tokenizer *out;
    int rc = kx_tokenizer_parse(&f, 77, &out, err);
    kx_tokenizer_close(out);
    return rc;
}

static const char *base_name(const struct kx_key_table *t) {
    const char *slash = strrchr(t->file, '/');
    return slash ? slash + 1 : t->file;
}

/* Reads the file as kiln would. With a scheduler, *samplers are those that the file leaves out. */
static int read_file(const struct kx_key_table *t, json_object *file, uint32_t *samplers,
                     struct kn_err *err) {
    struct kx_json j = {.file = base_name(t), .o = file};
    static union {
        struct kx_index index;
        struct kx_text_config text;
        struct kx_unet_config unet;
        struct kx_vae_config vae;
        struct kx_scheduler_config scheduler;
    } out;
    *samplers = 0;
    if (t == &kx_keys_index) return kx_config_index(&j, &out.index, err);
    if (t == &kx_keys_text) return kx_config_text(&j, &out.text, err);
    if (t == &kx_keys_unet) return kx_config_unet(&j, &out.unet, err);
    if (t == &kx_keys_vae) return kx_config_vae(&j, &out.vae, err);
    if (t != &kx_keys_scheduler) return read_tokenizer(t, json_object_to_json_string(file), err);
    int rc = kx_config_scheduler(&j, &out.scheduler, err);
    *samplers = out.scheduler.unsupported;
    for (int i = 0; i < KN_SAMPLER_COUNT && !rc; i++)
        if (*samplers & 1u << kn_samplers[i])
            snprintf(err->text, sizeof err->text, "%s: %s", j.file,
                     out.scheduler.unsupported_field[kn_samplers[i]]);
    return rc;
}

static int read_with(const struct kx_key_table *t, const char *key, const char *value, uint32_t *samplers,
                     struct kn_err *err) {
    json_object *file = json_tokener_parse(sound(t)), *v = json_tokener_parse(value);
    CHECK_MSG(file && (v || !strcmp(value, "null")), "%s: %s: %s is no JSON", t->file, key, value);
    *err = (struct kn_err){0};
    json_object_object_add(file, key, v);
    int rc = read_file(t, file, samplers, err);
    json_object_put(file);
    return rc;
}

/* Refused: the file, or just those samplers that read the key. */
static void check_refused(const struct kx_key_table *t, const struct kx_key *row, const char *value) {
    struct kn_err err;
    uint32_t samplers;
    int rc = read_with(t, row->key, value, &samplers, &err);
    CHECK_MSG(rc || (row->samplers && samplers == row->samplers), "%s: %s: %s is read", t->file, row->key,
              value);
    CHECK_MSG(!rc || rc == KN_EPARSE || rc == KN_EUNSUPPORTED, "%s: %s: %d", t->file, row->key, rc);
    CHECK_MSG(strstr(err.text, row->key), "%s: %s: %s", t->file, row->key, err.text);
    const char *file = t == &kx_keys_tokenizer_model ? "tokenizer.json" : base_name(t);
    CHECK_MSG(strstr(err.text, file), "%s: %s: %s", t->file, row->key, err.text);
}

TEST(a_harmful_value_of_any_key_is_refused_with_file_and_key) {
    for (int i = 0; kx_key_tables[i]; i++)
        for (size_t k = 0; k < kx_key_tables[i]->count; k++) {
            const struct kx_key_table *t = kx_key_tables[i];
            const struct kx_key *row = &t->keys[k];
            struct kn_err err;
            uint32_t samplers;
            if (row->use == KX_KEY_IGNORED) {
                int rc = read_with(t, row->key, "{\"anything\": [1]}", &samplers, &err);
                CHECK_MSG(!rc && !samplers, "%s: %s", t->file, err.text);
                continue;
            }
            CHECK_MSG(row->harmful, "%s: %s: the table needs a harmful value", t->file, row->key);
            check_refused(t, row, row->harmful);
        }
}

TEST(null_is_refused_where_it_is_not_the_keys_absence) {
    for (int i = 0; kx_key_tables[i]; i++)
        for (size_t k = 0; k < kx_key_tables[i]->count; k++) {
            const struct kx_key *row = &kx_key_tables[i]->keys[k];
            struct kn_err err;
            uint32_t samplers;
            if (row->use == KX_KEY_IGNORED) continue;
            if (!row->harmless || !strstr(row->harmless, "null"))
                check_refused(kx_key_tables[i], row, "null");
            else if (kx_key_tables[i] != &kx_keys_index) /* where the second encoder is needed */
                CHECK_MSG(!read_with(kx_key_tables[i], row->key, "null", &samplers, &err) && !samplers,
                          "%s: %s", row->key, err.text);
        }
}

TEST(a_key_that_nobody_knows_is_refused_unless_the_writers_speak_of_themselves) {
    for (int i = 0; kx_key_tables[i]; i++) {
        struct kn_err err;
        uint32_t samplers;
        CHECK_INT(read_with(kx_key_tables[i], "use_some_new_thing", "false", &samplers, &err),
                  KN_EUNSUPPORTED);
        CHECK_MSG(strstr(err.text, "use_some_new_thing: this version of kiln does not know the key"), "%s",
                  err.text);
        CHECK_MSG(!read_with(kx_key_tables[i], "_name_or_path", "\"x\"", &samplers, &err), "%s", err.text);
    }
}

/* A row of docs/CONFIG.md. */
static void write_row(struct kn_buf *out, const struct kx_key_table *t, const struct kx_key *row) {
    static const char *const uses[] = {"used", "checked", "ignored"};
    bool scheduler = t == &kx_keys_scheduler;
    CHECK(!kn_buf_appendf(out, "| `%s` | %s |", row->key, uses[row->use]));
    for (int s = 0, n = 0; scheduler && s < KN_SAMPLER_COUNT; s++)
        if (row->samplers & 1u << kn_samplers[s])
            CHECK(!kn_buf_appendf(out, "%s%s", n++ ? ", " : " ", kn_sampler_name(kn_samplers[s])));
    if (scheduler) CHECK(!kn_buf_appends(out, " |"));
    json_object *list = row->use == KX_KEY_CHECKED ? json_tokener_parse(row->harmless) : NULL;
    for (size_t v = 0; list && v < json_object_array_length(list); v++) {
        const char *text =
            json_object_to_json_string_ext(json_object_array_get_idx(list, v), JSON_C_TO_STRING_PLAIN);
        if (strlen(text) > 80) continue; /* CLIP's own, as the words say */
        CHECK(!kn_buf_appendf(out, "%s`%s`", v ? " or " : " ", text));
    }
    json_object_put(list);
    CHECK(!kn_buf_appendf(out, " | %s |\n", row->words));
}

/* What docs/CONFIG.md has below its last line of words. */
static void write_tables(struct kn_buf *out) {
    for (int i = 0; kx_key_tables[i]; i++) {
        const struct kx_key_table *t = kx_key_tables[i];
        bool scheduler = t == &kx_keys_scheduler;
        CHECK(!kn_buf_appendf(out, "\n## %s\n\n| key | |%s must be | |\n| --- | --- |%s --- | --- |\n",
                              t->file, scheduler ? " read with |" : "", scheduler ? " --- |" : ""));
        for (size_t k = 0; k < t->count; k++) write_row(out, t, &t->keys[k]);
    }
}

/* KILN_WRITE_DOCS=1 writes the tables into the page. */
TEST(the_documentation_shows_the_tables_that_are_checked) {
    static const char mark[] =
        "<!-- What follows is made from the tables: KILN_WRITE_DOCS=1 test-engine-config -->\n";
    struct kn_buf page, tables;
    struct kn_err err = {0};
    kn_buf_init(&page, 1 << 20);
    kn_buf_init(&tables, 1 << 20);
    CHECK_MSG(!kn_fs_read(KILN_CONFIG_PAGE, &page, &err), "%s", err.text);
    char *at = strstr(page.data, mark);
    CHECK(at);
    at += sizeof mark - 1;
    write_tables(&tables);
    if (getenv("KILN_WRITE_DOCS")) {
        struct kn_buf whole;
        kn_buf_init(&whole, 1 << 20);
        CHECK(!kn_buf_append(&whole, page.data, (size_t)(at - page.data)));
        CHECK(!kn_buf_append(&whole, tables.data, tables.len));
        CHECK_MSG(!kn_fs_replace(KILN_CONFIG_PAGE, whole.data, whole.len, false, &err), "%s", err.text);
        kn_buf_fini(&whole);
    } else {
        CHECK_STR(at, tables.data);
    }
    kn_buf_fini(&page);
    kn_buf_fini(&tables);
}

/* ---- the scheduler's class ---- */

static int index_with_scheduler(const char *class, struct kx_index *out, struct kn_err *err) {
    char text[1024];
    snprintf(
        text, sizeof text,
        "{\"_class_name\":\"StableDiffusionPipeline\",\"tokenizer\":[\"transformers\",\"CLIPTokenizer\"],"
        "\"text_encoder\":[\"transformers\",\"CLIPTextModel\"],\"unet\":[\"diffusers\","
        "\"UNet2DConditionModel\"],\"vae\":[\"diffusers\",\"AutoencoderKL\"],\"scheduler\":"
        "[\"diffusers\",\"%s\"]}",
        class);
    return index_of(text, out, err);
}

TEST(the_schedulers_class_is_that_of_model_index_json) {
    struct kx_index x;
    struct kx_scheduler_config c;
    struct kn_defaults d = {0};
    struct kn_err err = {0};
    CHECK_MSG(!index_with_scheduler("EulerDiscreteScheduler", &x, &err), "%s", err.text);
    CHECK_MSG(!scheduler_of("{\"_class_name\":\"PNDMScheduler\"}", &c, &err), "%s", err.text);
    CHECK_INT(c.own, KN_SAMPLER_PNDM);
    kx_config_scheduler_class(&c, &x);
    kx_config_scheduler_defaults(&c, &d);
    CHECK_INT(c.own, KN_SAMPLER_EULER);
    CHECK_INT(d.sampler, KN_SAMPLER_EULER);
    CHECK_INT(index_with_scheduler("FlowMatchEulerDiscreteScheduler", &x, &err), KN_EUNSUPPORTED);
    CHECK_MSG(
        strstr(err.text, "model_index.json: scheduler: kiln does not have FlowMatchEulerDiscreteScheduler"),
        "%s", err.text);
}

TEST(a_scheduler_that_kiln_has_not_gives_no_default_sampler) {
    struct kx_index x;
    struct kx_scheduler_config c;
    struct kn_defaults d = {.sampler = KN_SAMPLER_EULER};
    struct kn_err err = {0};
    CHECK_MSG(!index_with_scheduler("UniPCMultistepScheduler", &x, &err), "%s", err.text);
    CHECK_STR(x.scheduler, "UniPCMultistepScheduler");
    CHECK_MSG(!scheduler_of("{\"use_karras_sigmas\":true,\"solver_type\":\"heun\"}", &c, &err), "%s",
              err.text);
    kx_config_scheduler_class(&c, &x);
    kx_config_scheduler_defaults(&c, &d);
    CHECK(d.sampler == KN_SAMPLER_UNSET && d.karras && !c.solver_heun);
}

TEST(a_part_out_of_the_models_own_code_is_refused) {
    struct kx_index x;
    struct kn_err err = {0};
    CHECK_INT(index_of("{\"_class_name\":\"StableDiffusionPipeline\",\"unet\":[\"my_unet\","
                       "\"UNet2DConditionModel\"],\"tokenizer\":[\"transformers\",\"CLIPTokenizer\"],"
                       "\"text_encoder\":[\"transformers\",\"CLIPTextModel\"]}",
                       &x, &err),
              KN_EUNSUPPORTED);
    CHECK_MSG(strstr(err.text, "unet: UNet2DConditionModel of the library my_unet"), "%s", err.text);
}

TEST(a_message_names_the_field_that_the_sampler_reads) {
    struct kx_scheduler_config c;
    struct kx_schedule s;
    struct kn_err err = {0};
    CHECK(!scheduler_of("{\"use_beta_sigmas\":true,\"thresholding\":true}", &c, &err));
    CHECK_INT(kx_schedule_create(&c, KN_SAMPLER_DDIM, KN_SCHEDULE_NORMAL, 5, &s, &err), KN_EUNSUPPORTED);
    CHECK_STR(err.text, "scheduler_config.json: thresholding: true is not supported with DDIM");
    CHECK_INT(kx_schedule_create(&c, KN_SAMPLER_EULER, KN_SCHEDULE_NORMAL, 5, &s, &err), KN_EUNSUPPORTED);
    CHECK_STR(err.text, "scheduler_config.json: use_beta_sigmas: true is not supported with Euler");
    CHECK(!scheduler_of("{\"variance_type\":\"fixed_small\"}", &c, &err));
    CHECK_MSG(!kx_schedule_create(&c, KN_SAMPLER_DPMPP_2M, KN_SCHEDULE_NORMAL, 5, &s, &err), "%s", err.text);
    kx_schedule_fini(&s);
}

TEST(kiln_json_holds_defaults_and_nothing_else) {
    struct kn_defaults d = {
        .sampler = KN_SAMPLER_PNDM, .schedule = KN_SCHEDULE_NORMAL, .steps = 20, .cfg = 7};
    struct kn_err err = {0};
    struct kx_json j = json_of(
        "kiln.json",
        "{\"sampler\":\"dpm++ 2m\",\"schedule\":\"karras\",\"steps\":12,\"cfg\":4.5,\"size\":\"128x96\"}");
    CHECK_MSG(!kx_config_defaults(&j, &d, &err), "%s", err.text);
    CHECK(d.sampler == KN_SAMPLER_DPMPP_2M && d.schedule == KN_SCHEDULE_KARRAS && d.steps == 12 &&
          d.cfg == 4.5f);
    CHECK(d.width == 128 && d.height == 96);
    json_object_put(j.o);
    j = json_of("kiln.json", "{\"stesp\":12}");
    CHECK_INT(kx_config_defaults(&j, &d, &err), KN_EPARSE);
    CHECK_STR(err.text, "kiln.json: stesp: unknown, did you mean steps?");
    json_object_put(j.o);
    j = json_of("kiln.json", "{\"sampler\":\"ddim\",\"schedule\":\"karras\"}");
    CHECK_INT(kx_config_defaults(&j, &d, &err), KN_EPARSE);
    json_object_put(j.o);
}

TEST(vae_and_text_configs_are_read_or_refused) {
    struct kx_vae_config v;
    struct kx_text_config t;
    struct kn_err err = {0};
    struct kx_json j =
        json_of("vae/config.json",
                "{\"block_out_channels\":[128,256,512,512],\"layers_per_block\":2,\"up_block_types\":["
                "\"UpDecoderBlock2D\",\"UpDecoderBlock2D\",\"UpDecoderBlock2D\",\"UpDecoderBlock2D\"]}");
    CHECK_MSG(!kx_config_vae(&j, &v, &err), "%s", err.text);
    CHECK(v.factor == 8 && v.scaling_factor == 0.18215f && v.post_quant_conv && v.mid_attention);
    json_object_put(j.o);
    static const char *const bad[] = {
        "{\"block_out_channels\":[32],\"latents_mean\":[0.1]}",
        "{\"block_out_channels\":[32],\"shift_factor\":0.1}",
        "{\"block_out_channels\":[32],\"up_block_types\":[\"AttnUpDecoderBlock2D\"]}",
        "{\"block_out_channels\":[32],\"out_channels\":1}",
        "{\"block_out_channels\":[32],\"act_fn\":\"relu\"}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        j = json_of("vae/config.json", bad[i]);
        CHECK_MSG(kx_config_vae(&j, &v, &err) == KN_EUNSUPPORTED, "%s", bad[i]);
        json_object_put(j.o);
    }
    j = json_of(
        "text_encoder/config.json",
        "{\"hidden_act\":\"gelu\",\"hidden_size\":1024,\"num_attention_heads\":16,\"num_hidden_layers\":23}");
    CHECK_MSG(!kx_config_text(&j, &t, &err), "%s", err.text);
    CHECK(!t.quick_gelu && t.layers == 23 && t.positions_max == 77 && t.vocab_size == 49408);
    json_object_put(j.o);
    j = json_of("text_encoder_2/config.json",
                "{\"architectures\":[\"CLIPTextModelWithProjection\"],\"bos_token_id\":0,\"eos_token_id\":2,"
                "\"hidden_act\":\"gelu\",\"hidden_size\":1280,\"intermediate_size\":5120,\"layer_norm_eps\":"
                "1e-05,\"max_position_embeddings\":77,\"model_type\":\"clip_text_model\","
                "\"num_attention_heads\":20,\"num_hidden_layers\":32,\"pad_token_id\":1,\"projection_dim\":"
                "1280,\"vocab_size\":49408}");
    CHECK_MSG(!kx_config_text(&j, &t, &err), "%s", err.text);
    CHECK(t.projection_dim == 1280 && t.eos_token_id == 2 && t.layers == 32 && !t.projected &&
          !t.penultimate);
    json_object_put(j.o);
    j = json_of("text_encoder/config.json", "{\"hidden_act\":\"relu\"}");
    CHECK_INT(kx_config_text(&j, &t, &err), KN_EUNSUPPORTED);
    json_object_put(j.o);
    j = json_of("text_encoder/config.json", "{\"hidden_size\":10,\"num_attention_heads\":3}");
    CHECK_INT(kx_config_text(&j, &t, &err), KN_EPARSE);
    json_object_put(j.o);
}

TEST(a_message_names_the_line_of_broken_json) {
    struct kx_json j;
    struct kn_err err = {0};
    static const char text[] = "{\n \"a\": 1,\n \"b\": }\n";
    CHECK_INT(kx_json_parse("f.json", text, sizeof text - 1, &j, &err), KN_EPARSE);
    CHECK_MSG(!strncmp(err.text, "f.json:3: ", 10), "%s", err.text);
    CHECK_INT(kx_json_parse("f.json", "[1]", 3, &j, &err), KN_EPARSE);
    CHECK_INT(kx_json_parse("f.json", "{}x", 3, &j, &err), KN_EPARSE);
    CHECK_INT(kx_json_parse("f.json", "", 0, &j, &err), KN_EPARSE);
}
