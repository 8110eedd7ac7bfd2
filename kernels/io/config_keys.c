/* See the header. Rows are in the order in which diffusers' classes take them, then what older writers add. */
#include "kernels/io/config_keys.h"

#include <string.h>

#include "base/spec.h"

#define TABLE(name, path, rows)                                                                              \
    const struct kx_key_table name = {.file = path, .keys = rows, .count = sizeof(rows) / sizeof *(rows)}

/* ---- model_index.json ---- */

#define NO_PART "[null, [null, null]]"

static const struct kx_key index_rows[] = {
    {"_class_name", KX_KEY_USED, NULL, "\"OtherPipeline\"", "the kind of pipeline", 0},
    {"text_encoder", KX_KEY_USED, NULL, "[\"transformers\", \"T5EncoderModel\"]", "CLIPTextModel", 0},
    {"tokenizer", KX_KEY_USED, NULL, "[\"transformers\", \"T5Tokenizer\"]",
     "CLIPTokenizer, CLIPTokenizerFast", 0},
    {"unet", KX_KEY_USED, NULL, "[\"diffusers\", \"UNet2DModel\"]", "UNet2DConditionModel", 0},
    {"vae", KX_KEY_USED, NULL, "[\"diffusers\", \"AutoencoderTiny\"]", "AutoencoderKL", 0},
    {"scheduler", KX_KEY_USED, NULL, "[\"diffusers\", \"FlowMatchEulerDiscreteScheduler\"]",
     "the scheduler's class, which counts before the one in scheduler_config.json, as in diffusers", 0},
    {"text_encoder_2", KX_KEY_USED, NO_PART, "[\"transformers\", \"T5EncoderModel\"]",
     "CLIPTextModelWithProjection; StableDiffusionXLPipeline's", 0},
    {"tokenizer_2", KX_KEY_USED, NO_PART, "[\"transformers\", \"T5Tokenizer\"]",
     "CLIPTokenizer, CLIPTokenizerFast; StableDiffusionXLPipeline's", 0},
    {"force_zeros_for_empty_prompt", KX_KEY_USED, NULL, "1",
     "an empty negative prompt is zeros; StableDiffusionXLPipeline's", 0},
    {"image_encoder", KX_KEY_CHECKED, NO_PART, "[\"transformers\", \"CLIPVisionModelWithProjection\"]",
     "kiln has no prompts that are images", 0},
    {"transformer", KX_KEY_CHECKED, NO_PART, "[\"diffusers\", \"SD3Transformer2DModel\"]", "another family",
     0},
    {"controlnet", KX_KEY_CHECKED, NO_PART, "[\"diffusers\", \"ControlNetModel\"]", "not supported", 0},
    {"add_watermarker", KX_KEY_CHECKED, "[false, null]", "true",
     "would change the pixels; kiln marks its pictures in their metadata", 0},
    {"requires_aesthetics_score", KX_KEY_CHECKED, "[false]", "true", "the refiner's", 0},
    {"safety_checker", KX_KEY_IGNORED, NULL, NULL, "kiln judges no pictures: none is blackened", 0},
    {"requires_safety_checker", KX_KEY_IGNORED, NULL, NULL, "as safety_checker", 0},
    {"feature_extractor", KX_KEY_IGNORED, NULL, NULL, "feeds the safety checker alone", 0},
};
TABLE(kx_keys_index, "model_index.json", index_rows);

/* ---- text_encoder/config.json, text_encoder_2/config.json ---- */

#define GENERAL(key)                                                                                         \
    {                                                                                                        \
        key, KX_KEY_IGNORED, NULL, NULL,                                                                     \
            "what transformers says of any model; CLIP's text model has no use for it", 0                    \
    }
#define TRAINING(key)                                                                                        \
    { key, KX_KEY_IGNORED, NULL, NULL, "training alone reads it", 0 }
#define LABEL(key, words)                                                                                    \
    { key, KX_KEY_IGNORED, NULL, NULL, words, 0 }

static const struct kx_key text_rows[] = {
    {"vocab_size", KX_KEY_USED, NULL, "0", "tokens", 0},
    {"hidden_size", KX_KEY_USED, NULL, "0", "width of the states", 0},
    {"intermediate_size", KX_KEY_USED, NULL, "0", "width of the feed-forward layers", 0},
    {"projection_dim", KX_KEY_USED, NULL, "0", "width of the pooled text; text_encoder_2's", 0},
    {"num_hidden_layers", KX_KEY_USED, NULL, "0", "layers", 0},
    {"num_attention_heads", KX_KEY_USED, NULL, "0", "heads", 0},
    {"max_position_embeddings", KX_KEY_USED, NULL, "1", "tokens a text", 0},
    {"hidden_act", KX_KEY_USED, NULL, "\"relu\"", "quick_gelu or gelu", 0},
    {"layer_norm_eps", KX_KEY_USED, NULL, "-1", "of the norms", 0},
    {"eos_token_id", KX_KEY_USED, NULL, "-1", "where the pooled text is taken from; 2: at the largest id", 0},
    {"model_type", KX_KEY_CHECKED, "[\"clip_text_model\"]", "\"clip\"", "the kind of model", 0},
    {"use_attention_mask", KX_KEY_CHECKED, "[false, null]", "true", "padding is never masked", 0},
    {"pruned_heads", KX_KEY_CHECKED, "[null, {}]", "{\"0\": [1]}", "would leave heads out", 0},
    {"quantization_config", KX_KEY_CHECKED, "[null]", "{\"quant_method\": \"bitsandbytes\"}",
     "weights are f32, f16 or bf16", 0},
    LABEL("architectures", "the pipeline's file names the class"),
    LABEL("dtype", "weights are read as the type that they have"),
    LABEL("torch_dtype", "weights are read as the type that they have"),
    LABEL("transformers_version", "who wrote the file"),
    LABEL("bos_token_id", "the tokenizer's files say it"),
    LABEL("pad_token_id", "the tokenizer's files say it"),
    TRAINING("attention_dropout"),
    TRAINING("dropout"),
    TRAINING("initializer_factor"),
    TRAINING("initializer_range"),
    TRAINING("gradient_checkpointing"),
    TRAINING("logit_scale_init_value"),
    GENERAL("add_cross_attention"),
    GENERAL("bad_words_ids"),
    GENERAL("begin_suppress_tokens"),
    GENERAL("chunk_size_feed_forward"),
    GENERAL("cross_attention_hidden_size"),
    GENERAL("decoder_start_token_id"),
    GENERAL("diversity_penalty"),
    GENERAL("do_sample"),
    GENERAL("early_stopping"),
    GENERAL("encoder_no_repeat_ngram_size"),
    GENERAL("exponential_decay_length_penalty"),
    GENERAL("finetuning_task"),
    GENERAL("forced_bos_token_id"),
    GENERAL("forced_eos_token_id"),
    GENERAL("id2label"),
    GENERAL("is_decoder"),
    GENERAL("is_encoder_decoder"),
    GENERAL("label2id"),
    GENERAL("length_penalty"),
    GENERAL("max_length"),
    GENERAL("min_length"),
    GENERAL("no_repeat_ngram_size"),
    GENERAL("num_beam_groups"),
    GENERAL("num_beams"),
    GENERAL("num_return_sequences"),
    GENERAL("output_attentions"),
    GENERAL("output_hidden_states"),
    GENERAL("output_scores"),
    GENERAL("prefix"),
    GENERAL("problem_type"),
    GENERAL("remove_invalid_values"),
    GENERAL("repetition_penalty"),
    GENERAL("return_dict"),
    GENERAL("return_dict_in_generate"),
    GENERAL("sep_token_id"),
    GENERAL("suppress_tokens"),
    GENERAL("task_specific_params"),
    GENERAL("temperature"),
    GENERAL("tf_legacy_loss"),
    GENERAL("tie_encoder_decoder"),
    GENERAL("tie_word_embeddings"),
    GENERAL("tokenizer_class"),
    GENERAL("top_k"),
    GENERAL("top_p"),
    GENERAL("torchscript"),
    GENERAL("typical_p"),
    GENERAL("use_bfloat16"),
    GENERAL("use_cache"),
};
TABLE(kx_keys_text, "text_encoder/config.json", text_rows);

/* ---- unet/config.json ---- */

#define EMA(key)                                                                                             \
    { key, KX_KEY_IGNORED, NULL, NULL, "how a training script averaged the weights", 0 }

static const struct kx_key unet_rows[] = {
    {"_class_name", KX_KEY_CHECKED, "[\"UNet2DConditionModel\"]", "\"UNet2DModel\"", "the class", 0},
    {"sample_size", KX_KEY_USED, "[null]", "[8, 16]", "the native size, the default of width and height", 0},
    {"in_channels", KX_KEY_USED, NULL, "9", "channels of a latent", 0},
    {"out_channels", KX_KEY_USED, NULL, "5", "as many", 0},
    {"center_input_sample", KX_KEY_CHECKED, "[false, null]", "true", "", 0},
    {"flip_sin_to_cos", KX_KEY_USED, NULL, "1", "order of the timestep's embedding", 0},
    {"freq_shift", KX_KEY_USED, NULL, "\"0\"", "of the timestep's embedding", 0},
    {"down_block_types", KX_KEY_USED, NULL, "[\"AttnDownBlock2D\", \"DownBlock2D\"]",
     "DownBlock2D, CrossAttnDownBlock2D", 0},
    {"mid_block_type", KX_KEY_CHECKED, "[\"UNetMidBlock2DCrossAttn\"]", "null",
     "null would be no middle at all", 0},
    {"up_block_types", KX_KEY_USED, NULL, "[\"AttnUpBlock2D\", \"UpBlock2D\"]",
     "UpBlock2D, CrossAttnUpBlock2D", 0},
    {"only_cross_attention", KX_KEY_CHECKED, "[false, null]", "true", "", 0},
    {"block_out_channels", KX_KEY_USED, NULL, "\"320\"", "channels, level by level", 0},
    {"layers_per_block", KX_KEY_USED, NULL, "0", "resnets of a level", 0},
    {"downsample_padding", KX_KEY_CHECKED, "[1]", "0", "", 0},
    {"mid_block_scale_factor", KX_KEY_CHECKED, "[1]", "2", "", 0},
    {"act_fn", KX_KEY_USED, NULL, "\"mish\"", "silu, swish", 0},
    {"norm_num_groups", KX_KEY_USED, NULL, "null", "groups of the norms", 0},
    {"norm_eps", KX_KEY_USED, NULL, "-1", "of the norms", 0},
    {"cross_attention_dim", KX_KEY_USED, NULL, "0", "width of the text's states", 0},
    {"transformer_layers_per_block", KX_KEY_USED, NULL, "0", "transformer layers of a level", 0},
    {"reverse_transformer_layers_per_block", KX_KEY_CHECKED, "[null]", "[1, 1]", "", 0},
    {"encoder_hid_dim", KX_KEY_CHECKED, "[null]", "64", "", 0},
    {"encoder_hid_dim_type", KX_KEY_CHECKED, "[null]", "\"text_proj\"", "", 0},
    {"attention_head_dim", KX_KEY_USED, NULL, "0", "heads (that is what it means here)", 0},
    {"num_attention_heads", KX_KEY_CHECKED, "[null]", "4", "diffusers refuses it, too", 0},
    {"dual_cross_attention", KX_KEY_CHECKED, "[false, null]", "true", "", 0},
    {"use_linear_projection", KX_KEY_USED, "[null]", "1", "linear layers instead of 1×1 convolutions", 0},
    {"class_embed_type", KX_KEY_CHECKED, "[null]", "\"timestep\"", "", 0},
    {"addition_embed_type", KX_KEY_USED, "[null]", "\"text\"", "text_time with SDXL, else none", 0},
    {"addition_time_embed_dim", KX_KEY_USED, "[null]", "256", "width of each of SDXL's sizes", 0},
    {"num_class_embeds", KX_KEY_CHECKED, "[null]", "10", "", 0},
    {"resnet_time_scale_shift", KX_KEY_CHECKED, "[\"default\"]", "\"scale_shift\"", "", 0},
    {"resnet_skip_time_act", KX_KEY_CHECKED, "[false, null]", "true", "", 0},
    {"resnet_out_scale_factor", KX_KEY_CHECKED, "[1]", "1.5", "", 0},
    {"time_embedding_type", KX_KEY_CHECKED, "[\"positional\"]", "\"fourier\"", "", 0},
    {"time_embedding_dim", KX_KEY_CHECKED, "[null]", "64", "", 0},
    {"time_embedding_act_fn", KX_KEY_CHECKED, "[null]", "\"silu\"", "", 0},
    {"timestep_post_act", KX_KEY_CHECKED, "[null]", "\"silu\"", "", 0},
    {"time_cond_proj_dim", KX_KEY_CHECKED, "[null]", "256", "guidance as an input of the network (LCM)", 0},
    {"conv_in_kernel", KX_KEY_CHECKED, "[3]", "1", "", 0},
    {"conv_out_kernel", KX_KEY_CHECKED, "[3]", "1", "", 0},
    {"projection_class_embeddings_input_dim", KX_KEY_USED, "[null]", "2816",
     "width of SDXL's pooled text and sizes", 0},
    {"attention_type", KX_KEY_CHECKED, "[\"default\"]", "\"gated\"", "GLIGEN's layers", 0},
    {"class_embeddings_concat", KX_KEY_CHECKED, "[false, null]", "true", "", 0},
    {"mid_block_only_cross_attention", KX_KEY_CHECKED, "[false, null]", "true", "", 0},
    {"cross_attention_norm", KX_KEY_CHECKED, "[null]", "\"layer_norm\"", "", 0},
    {"quantization_config", KX_KEY_CHECKED, "[null]", "{\"quant_method\": \"bitsandbytes\"}",
     "weights are f32, f16 or bf16", 0},
    LABEL("addition_embed_type_num_heads", "only embeddings that kiln refuses read it"),
    LABEL("upcast_attention", "attention's sums are f32 whatever it says"),
    TRAINING("dropout"),
    EMA("decay"),
    EMA("inv_gamma"),
    EMA("min_decay"),
    EMA("optimization_step"),
    EMA("power"),
    EMA("update_after_step"),
    EMA("use_ema_warmup"),
};
TABLE(kx_keys_unet, "unet/config.json", unet_rows);

/* ---- vae/config.json ---- */

#define ENCODER(key)                                                                                         \
    { key, KX_KEY_IGNORED, NULL, NULL, "the encoder's, which nothing here runs", 0 }

static const struct kx_key vae_rows[] = {
    {"_class_name", KX_KEY_CHECKED, "[\"AutoencoderKL\"]", "\"AutoencoderTiny\"", "the class", 0},
    {"out_channels", KX_KEY_CHECKED, "[3]", "1", "red, green, blue", 0},
    {"up_block_types", KX_KEY_USED, NULL, "[\"AttnUpDecoderBlock2D\"]", "UpDecoderBlock2D", 0},
    {"block_out_channels", KX_KEY_USED, NULL, "\"64\"", "channels, level by level", 0},
    {"layers_per_block", KX_KEY_USED, NULL, "0", "resnets of a level", 0},
    {"act_fn", KX_KEY_USED, NULL, "\"relu\"", "silu, swish", 0},
    {"latent_channels", KX_KEY_USED, NULL, "0", "channels of a latent", 0},
    {"norm_num_groups", KX_KEY_USED, NULL, "0", "groups of the norms", 0},
    {"scaling_factor", KX_KEY_USED, NULL, "0", "latents are divided by it", 0},
    {"shift_factor", KX_KEY_CHECKED, "[null, 0]", "0.1", "", 0},
    {"latents_mean", KX_KEY_CHECKED, "[null]", "[0.1, 0, 0, 0]", "", 0},
    {"latents_std", KX_KEY_CHECKED, "[null]", "[2, 1, 1, 1]", "", 0},
    {"force_upcast", KX_KEY_USED, NULL, "1", "SDXL's on a GPU: computed in bf16, since f16 overflows", 0},
    {"use_post_quant_conv", KX_KEY_USED, NULL, "1", "the decoder begins with a 1×1 convolution", 0},
    {"mid_block_add_attention", KX_KEY_USED, NULL, "1", "attention in the middle", 0},
    {"quantization_config", KX_KEY_CHECKED, "[null]", "{\"quant_method\": \"bitsandbytes\"}",
     "weights are f32, f16 or bf16", 0},
    ENCODER("in_channels"),
    ENCODER("down_block_types"),
    ENCODER("use_quant_conv"),
    LABEL("sample_size", "the size of tiles, and kiln decodes whole pictures"),
};
TABLE(kx_keys_vae, "vae/config.json", vae_rows);

/* ---- scheduler/scheduler_config.json ---- */

#define DDIM (1u << KN_SAMPLER_DDIM)
#define PNDM (1u << KN_SAMPLER_PNDM)
#define EULER (1u << KN_SAMPLER_EULER)
#define EULER_A (1u << KN_SAMPLER_EULER_A)
#define DPMPP (1u << KN_SAMPLER_DPMPP_2M)
#define ALL KN_SAMPLER_MASK
#define OTHERS(key)                                                                                          \
    { key, KX_KEY_IGNORED, NULL, NULL, "read by schedulers that kiln does not have alone", 0 }

static const struct kx_key scheduler_rows[] = {
    {"num_train_timesteps", KX_KEY_USED, NULL, "1", "training steps", ALL},
    {"beta_start", KX_KEY_USED, NULL, "-1", "noise of the first", ALL},
    {"beta_end", KX_KEY_USED, NULL, "-1", "noise of the last", ALL},
    {"beta_schedule", KX_KEY_USED, NULL, "\"sigmoid\"", "linear, scaled_linear, squaredcos_cap_v2", ALL},
    {"trained_betas", KX_KEY_CHECKED, "[null]", "[0.1, 0.2]", "", ALL},
    {"prediction_type", KX_KEY_USED, NULL, "\"flow_prediction\"", "epsilon, v_prediction, sample", ALL},
    {"predict_epsilon", KX_KEY_CHECKED, "[true, null]", "false", "an older word for prediction_type", ALL},
    {"timestep_spacing", KX_KEY_USED, NULL, "\"quadratic\"", "linspace, leading, trailing", ALL},
    {"steps_offset", KX_KEY_USED, NULL, "-1", "added to the timesteps of leading", ALL},
    {"rescale_betas_zero_snr", KX_KEY_USED, "[null]", "1", "the last step is noise alone", ALL & ~PNDM},
    {"clip_sample", KX_KEY_USED, NULL, "1", "clips the prediction", DDIM},
    {"clip_sample_range", KX_KEY_USED, NULL, "-1", "at this value", DDIM},
    {"set_alpha_to_one", KX_KEY_USED, NULL, "1", "what comes before the first step", DDIM | PNDM},
    {"skip_prk_steps", KX_KEY_USED, "[null]", "1", "begins without Runge–Kutta", PNDM},
    {"use_karras_sigmas", KX_KEY_USED, NULL, "1", "the default of --schedule", EULER | DPMPP},
    {"use_exponential_sigmas", KX_KEY_CHECKED, "[false]", "true", "", EULER | DPMPP},
    {"use_beta_sigmas", KX_KEY_CHECKED, "[false]", "true", "", EULER | DPMPP},
    {"sigma_min", KX_KEY_USED, "[null]", "-1", "where karras ends", EULER | DPMPP},
    {"sigma_max", KX_KEY_USED, "[null]", "-1", "where karras begins", EULER | DPMPP},
    {"final_sigmas_type", KX_KEY_USED, NULL, "\"one\"", "zero, sigma_min", EULER | DPMPP},
    {"interpolation_type", KX_KEY_CHECKED, "[\"linear\"]", "\"log_linear\"", "", EULER},
    {"timestep_type", KX_KEY_CHECKED, "[\"discrete\"]", "\"continuous\"", "", EULER},
    {"thresholding", KX_KEY_CHECKED, "[false, null]", "true", "", DDIM | DPMPP},
    {"solver_order", KX_KEY_USED, NULL, "4", "1 or 2", DPMPP},
    {"solver_type", KX_KEY_CHECKED, "[\"midpoint\", \"heun\", \"logrho\", \"bh1\", \"bh2\"]", "\"rk4\"",
     "midpoint, heun; the other words mean midpoint", DPMPP},
    {"algorithm_type", KX_KEY_CHECKED, "[\"dpmsolver++\", \"deis\"]", "\"sde-dpmsolver++\"",
     "dpmsolver++; deis means the same", DPMPP},
    {"lower_order_final", KX_KEY_USED, NULL, "1", "the last step is of the first order below 15 steps",
     DPMPP},
    {"euler_at_final", KX_KEY_USED, "[null]", "1", "the last step is of the first order", DPMPP},
    {"lambda_min_clipped", KX_KEY_USED, NULL, "\"0\"", "the noisiest steps are left out", DPMPP},
    {"use_lu_lambdas", KX_KEY_CHECKED, "[false, null]", "true", "", DPMPP},
    {"use_flow_sigmas", KX_KEY_CHECKED, "[false, null]", "true", "", DPMPP},
    {"use_dynamic_shifting", KX_KEY_CHECKED, "[false, null]", "true", "", DPMPP},
    {"variance_type", KX_KEY_CHECKED,
     "[null, \"fixed_small\", \"fixed_small_log\", \"fixed_large\", \"fixed_large_log\"]",
     "\"learned_range\"", "only a learned variance is read, as half of the prediction", DPMPP},
    {"_use_default_values", KX_KEY_CHECKED, "[null, []]", "[\"steps_offset\"]",
     "would take back what the file states", ALL},
    LABEL("dynamic_thresholding_ratio", "read with thresholding alone"),
    LABEL("sample_max_value", "read with thresholding alone"),
    LABEL("flow_shift", "read with use_flow_sigmas alone"),
    LABEL("time_shift_type", "read with use_dynamic_shifting alone"),
    LABEL("tensor_format", "of a diffusers that still had NumPy's"),
    OTHERS("disable_corrector"),
    OTHERS("noise_sampler_seed"),
    OTHERS("original_inference_steps"),
    OTHERS("predict_x0"),
    OTHERS("shift_terminal"),
    OTHERS("solver_p"),
    OTHERS("timestep_scaling"),
};
TABLE(kx_keys_scheduler, "scheduler/scheduler_config.json", scheduler_rows);

/* ---- tokenizer/tokenizer_config.json, tokenizer_2/… ---- */

#define DECODING(key)                                                                                        \
    { key, KX_KEY_IGNORED, NULL, NULL, "from ids back to text, which nothing here does", 0 }
#define FILES(key)                                                                                           \
    { key, KX_KEY_IGNORED, NULL, NULL, "where the writer had its files", 0 }

static const struct kx_key tokenizer_config_rows[] = {
    {"tokenizer_class", KX_KEY_USED, "[null]", "\"T5Tokenizer\"", "CLIPTokenizer, CLIPTokenizerFast", 0},
    {"model_max_length", KX_KEY_USED, "[null]", "1", "tokens a text", 0},
    {"bos_token", KX_KEY_USED, NULL, "\"not in the vocabulary\"", "before every text", 0},
    {"eos_token", KX_KEY_USED, NULL, "\"not in the vocabulary\"", "behind every text", 0},
    {"unk_token", KX_KEY_USED, NULL, "\"not in the vocabulary\"",
     "for a symbol that the vocabulary does not have", 0},
    {"pad_token", KX_KEY_USED, NULL, "\"not in the vocabulary\"", "fills a text up", 0},
    {"added_tokens_decoder", KX_KEY_USED, "[null]", "{\"x\": {\"content\": \"<a>\"}}",
     "tokens that are cut out whole", 0},
    {"additional_special_tokens", KX_KEY_CHECKED, "[null, [], {}]", "[\"<a>\"]", "would be cut out whole", 0},
    {"extra_special_tokens", KX_KEY_CHECKED, "[null, [], {}]", "[\"<a>\"]", "would be cut out whole", 0},
    {"cls_token", KX_KEY_CHECKED, "[null]", "\"<a>\"", "would be cut out whole", 0},
    {"sep_token", KX_KEY_CHECKED, "[null]", "\"<a>\"", "would be cut out whole", 0},
    {"mask_token", KX_KEY_CHECKED, "[null]", "\"<a>\"", "would be cut out whole", 0},
    {"add_prefix_space", KX_KEY_CHECKED, "[false, null]", "true", "", 0},
    {"do_lower_case", KX_KEY_CHECKED, "[true, null]", "false", "CLIP's texts are in lower case", 0},
    {"split_special_tokens", KX_KEY_CHECKED, "[false, null]", "true", "", 0},
    {"padding_side", KX_KEY_CHECKED, "[\"right\", null]", "\"left\"", "", 0},
    {"truncation_side", KX_KEY_CHECKED, "[\"right\", null]", "\"left\"", "", 0},
    LABEL("__type", "what the entry is"),
    LABEL("add_bos_token", "CLIP's tokenizer always does"),
    LABEL("add_eos_token", "CLIP's tokenizer always does"),
    LABEL("backend", "which library reads the files"),
    LABEL("use_fast", "which library reads the files"),
    LABEL("auto_map", "where the class would be found"),
    LABEL("chat_template", "prompts are no chats"),
    LABEL("processor_class", "of images"),
    LABEL("model_input_names", "names of the outputs"),
    LABEL("max_length", "the pipeline always asks for model_max_length"),
    LABEL("truncation", "the pipeline always asks for it"),
    LABEL("truncation_strategy", "the pipeline always asks for it"),
    LABEL("padding", "the pipeline always asks for it"),
    LABEL("pad_to_multiple_of", "the pipeline always asks for model_max_length"),
    LABEL("pad_token_type_id", "the text model takes no types"),
    LABEL("stride", "of overlapping pieces, which the pipeline does not ask for"),
    LABEL("errors", "of decoding"),
    DECODING("clean_up_tokenization_spaces"),
    DECODING("trim_offsets"),
    FILES("name_or_path"),
    FILES("special_tokens_map_file"),
    FILES("tokenizer_file"),
    FILES("is_local"),
    FILES("local_files_only"),
};
TABLE(kx_keys_tokenizer_config, "tokenizer/tokenizer_config.json", tokenizer_config_rows);

/* ---- tokenizer/special_tokens_map.json ---- */

static const struct kx_key special_rows[] = {
    {"bos_token", KX_KEY_USED, NULL, "\"not in the vocabulary\"", "before every text", 0},
    {"eos_token", KX_KEY_USED, NULL, "\"not in the vocabulary\"", "behind every text", 0},
    {"unk_token", KX_KEY_USED, NULL, "\"not in the vocabulary\"",
     "for a symbol that the vocabulary does not have", 0},
    {"pad_token", KX_KEY_USED, NULL, "\"not in the vocabulary\"", "fills a text up", 0},
    {"additional_special_tokens", KX_KEY_CHECKED, "[null, []]", "[\"<a>\"]", "would be cut out whole", 0},
    {"cls_token", KX_KEY_CHECKED, "[null]", "\"<a>\"", "would be cut out whole", 0},
    {"sep_token", KX_KEY_CHECKED, "[null]", "\"<a>\"", "would be cut out whole", 0},
    {"mask_token", KX_KEY_CHECKED, "[null]", "\"<a>\"", "would be cut out whole", 0},
};
TABLE(kx_keys_special_tokens, "tokenizer/special_tokens_map.json", special_rows);

/* ---- tokenizer/tokenizer.json ---- */

#define NORMALIZER                                                                                           \
    "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFC\"}, {\"type\": \"Replace\", \"pattern\": "  \
    "{\"Regex\": \"\\\\s+\"}, \"content\": \" \"}, {\"type\": \"Lowercase\"}]}"
#define PRE_TOKENIZER(specials, last)                                                                          \
    "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": \"" specials  \
    "'s|'t|'re|'ve|'m|'ll|'d|[\\\\p{L}]+|[\\\\p{N}]|[^\\\\s\\\\p{L}\\\\p{N}]+\"}, \"behavior\": \"Removed\", " \
    "\"invert\": true}, {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true" last    \
    "}]}"
#define USE_REGEX ", \"use_regex\": true"
#define SPECIALS "<\\\\|startoftext\\\\|>|<\\\\|endoftext\\\\|>|"

static const struct kx_key tokenizer_rows[] = {
    {"added_tokens", KX_KEY_USED, "[null]", "[{\"id\": 0}]", "tokens that are cut out whole", 0},
    {"normalizer", KX_KEY_CHECKED, "[" NORMALIZER "]", "{\"type\": \"Lowercase\"}",
     "CLIP's: NFC, white space, lower case", 0},
    {"pre_tokenizer", KX_KEY_CHECKED,
     "[" PRE_TOKENIZER("", "") ", " PRE_TOKENIZER("", USE_REGEX) ", " PRE_TOKENIZER(
         SPECIALS, "") ", " PRE_TOKENIZER(SPECIALS, USE_REGEX) "]",
     "{\"type\": \"Whitespace\"}", "CLIP's pattern of words", 0},
    {"model", KX_KEY_USED, NULL, "null", "vocabulary and merges, below", 0},
    LABEL("version", "of the format"),
    LABEL("truncation", "the pipeline always asks for model_max_length"),
    LABEL("padding", "the pipeline always asks for model_max_length"),
    LABEL("post_processor", "bos_token and eos_token say it"),
    DECODING("decoder"),
};
TABLE(kx_keys_tokenizer, "tokenizer/tokenizer.json", tokenizer_rows);

static const struct kx_key tokenizer_model_rows[] = {
    {"type", KX_KEY_CHECKED, "[\"BPE\"]", "\"WordPiece\"", "", 0},
    {"dropout", KX_KEY_CHECKED, "[null, 0]", "0.1", "", 0},
    {"unk_token", KX_KEY_CHECKED, "[\"<|endoftext|>\", null]", "\"a\"", "tokenizer_config.json says it", 0},
    {"continuing_subword_prefix", KX_KEY_CHECKED, "[\"\", null]", "\"##\"", "", 0},
    {"end_of_word_suffix", KX_KEY_CHECKED, "[\"</w>\"]", "\"\"", "", 0},
    {"fuse_unk", KX_KEY_CHECKED, "[false]", "true", "", 0},
    {"byte_fallback", KX_KEY_CHECKED, "[false]", "true", "", 0},
    {"ignore_merges", KX_KEY_CHECKED, "[false]", "true", "", 0},
    {"vocab", KX_KEY_USED, NULL, "{\"a\": -1}", "tokens and their ids", 0},
    {"merges", KX_KEY_USED, NULL, "[\"a\"]", "pairs of tokens, in order", 0},
};
TABLE(kx_keys_tokenizer_model, "tokenizer/tokenizer.json: model", tokenizer_model_rows);

const struct kx_key_table *const kx_key_tables[] = {&kx_keys_index,
                                                    &kx_keys_scheduler,
                                                    &kx_keys_unet,
                                                    &kx_keys_vae,
                                                    &kx_keys_text,
                                                    &kx_keys_tokenizer_config,
                                                    &kx_keys_special_tokens,
                                                    &kx_keys_tokenizer,
                                                    &kx_keys_tokenizer_model,
                                                    NULL};

/* ---- the check ---- */

const struct kx_key *kx_key_find(const struct kx_key_table *t, const char *key) {
    for (size_t i = 0; i < t->count; i++)
        if (!strcmp(t->keys[i].key, key)) return &t->keys[i];
    return NULL;
}

/* Equal as JSON; numbers by their value, since some writers say 1.0. */
static bool same(json_object *a, json_object *b) {
    bool numbers = (json_object_is_type(a, json_type_int) || json_object_is_type(a, json_type_double)) &&
                   (json_object_is_type(b, json_type_int) || json_object_is_type(b, json_type_double));
    return numbers ? json_object_get_double(a) == json_object_get_double(b) : json_object_equal(a, b);
}

/* KN_ENOMEM where the list cannot be parsed: it is ours, and sound. */
static int among(const char *list, json_object *value, bool *found) {
    *found = false;
    json_object *all = list ? json_tokener_parse(list) : NULL;
    if (list && !all) return KN_ENOMEM;
    size_t n = all ? json_object_array_length(all) : 0;
    for (size_t i = 0; i < n && !*found; i++) *found = same(value, json_object_array_get_idx(all, i));
    json_object_put(all);
    return 0;
}

int kx_key_check(const struct kx_key_table *t, const char *file, const char *key, json_object *value,
                 struct kn_err *err) {
    const struct kx_key *row = kx_key_find(t, key);
    bool harmless = false;
    if (!row && key[0] == '_') return 0;
    if (!row && t == &kx_keys_index) { /* a part that the pipeline does without */
        int rc = among(NO_PART, value, &harmless);
        if (rc) return kn_err_set(err, rc, "%s: out of memory", file);
        if (harmless) return 0;
    }
    if (!row)
        return kn_err_set(
            err, KN_EUNSUPPORTED,
            "%s: %.64s: this version of kiln does not know the key, and so not what it does to the "
            "pictures; where they are right without it, take it out of the file",
            file, key);
    if (row->use == KX_KEY_IGNORED || (row->use == KX_KEY_USED && value)) return 0;
    int rc = among(row->harmless, value, &harmless);
    if (rc) return kn_err_set(err, rc, "%s: out of memory", file);
    if (harmless) return 0;
    if (row->use == KX_KEY_USED)
        return kn_err_set(
            err, KN_EUNSUPPORTED,
            "%s: %s: null is not supported; where the class's own default is meant, take the key out "
            "of the file",
            file, key);
    return kn_err_set(err, KN_EUNSUPPORTED, "%s: %s: %.80s is not supported, only %.80s", file, key,
                      json_object_to_json_string_ext(value, JSON_C_TO_STRING_PLAIN), row->harmless);
}

int kx_keys_check(const struct kx_key_table *t, const struct kx_json *j, struct kn_err *err) {
    json_object_object_foreach(j->o, key, value) {
        int rc = kx_key_check(t, j->file, key, value, err);
        if (rc) return rc;
    }
    return 0;
}
