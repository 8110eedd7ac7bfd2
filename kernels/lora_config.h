/* PEFT's LoraConfig, as far as it says how strongly a LoRA changes each layer: scale = alpha / rank, or
 * alpha / √rank (use_rslora), with other ranks and alphas for layers whose names fit a pattern (rank_pattern,
 * alpha_pattern). It comes from adapter_config.json, beside PEFT's adapter_model.safetensors, or from a file's
 * __metadata__ (lora_adapter_metadata, by diffusers since 0.34), there for each network under a prefix.
 * Source: peft/tuners/lora/config.py and layer.py, peft/utils/other.py: get_pattern_key. Any thread. */
#ifndef KILN_KERNELS_LORA_CONFIG_H
#define KILN_KERNELS_LORA_CONFIG_H

#include <stdbool.h>

#include "kernels/io/json.h"

#define KX_LORA_RANK_MAX 4096

struct kx_lora_config {
    const char *file;            /* for messages; borrowed */
    const char *prefix;          /* of its keys, "unet."; borrowed */
    int rank;                    /* r */
    double alpha;                /* lora_alpha */
    bool root;                   /* use_rslora */
    json_object *ranks, *alphas; /* the patterns; borrowed from the JSON; NULL: none */
};

/* Reads the keys of j that begin with prefix; what is absent is what PEFT takes then. A key that would change
 * pictures and that kiln does not apply (DoRA, biases, …) is KN_EUNSUPPORTED, another mistake KN_EPARSE, each
 * with file and key. out borrows from j and prefix. */
KN_MUST_USE int kx_lora_config_read(const struct kx_json *j, const char *prefix, struct kx_lora_config *out,
                                    struct kn_err *err);
/* The scale of the layer `module` (its name in the model, with dots), whose matrices have this rank. Another
 * rank than the config's is KN_EPARSE. */
KN_MUST_USE int kx_lora_config_scale(const struct kx_lora_config *c, const char *module, int rank, float *out,
                                     struct kn_err *err);

/* Says whether a pattern fits a layer's name as PEFT has it: the whole name, or what follows one of its dots. Of
 * regular expressions, those with . \d and characters, each maybe with * + or ?, ^ in front and $ behind.
 * KN_EUNSUPPORTED for others. */
KN_MUST_USE int kx_lora_pattern(const char *pattern, const char *name, bool *fits);

#endif
