/* Every key of the files that fix a model's pixels, as diffusers 0.42 and transformers 5 write them and older
 * versions wrote them: one table a file, from which the check is made and docs/CONFIG.md is written.
 *
 * An input that fixes pixels is never passed over in silence. A key is used; or it is checked to have a value
 * that changes nothing here; or it is ignored because no value of it can move a pixel. A key that no table
 * has is refused, unless it begins with an underscore, which marks what the writers say of themselves. A JSON
 * null is a value of its own: writers mean Python's None by it, which is not a key's absence. Pure; any
 * thread. */
#ifndef KILN_KERNELS_CONFIG_KEYS_H
#define KILN_KERNELS_CONFIG_KEYS_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "kernels/io/json.h"

enum kx_key_use {
    KX_KEY_USED,    /* the readers in config.c and tokenizer.c take it */
    KX_KEY_CHECKED, /* refused unless it has one of its harmless values */
    KX_KEY_IGNORED, /* cannot move a pixel, whatever its value */
};

struct kx_key {
    const char *key;
    enum kx_key_use use;
    const char *harmless; /* JSON list: the values that a checked key may have; "[null]" on a used key: null
                           * means the same as the key's absence. NULL: none */
    const char *harmful;  /* JSON: a value that is refused, which the tests feed it. NULL on an ignored key */
    const char *words;    /* what it does, or why it is passed over */
    uint32_t samplers;    /* the samplers (1u << value) whose class in diffusers reads it; 0: everybody */
};

struct kx_key_table {
    const char *file; /* the path in a model's folder */
    const struct kx_key *keys;
    size_t count;
};

extern const struct kx_key_table kx_keys_index, kx_keys_text, kx_keys_unet, kx_keys_vae, kx_keys_scheduler,
    kx_keys_tokenizer_config, kx_keys_special_tokens, kx_keys_tokenizer, kx_keys_tokenizer_model;

/* All of them, in the documentation's order; the last is NULL. */
extern const struct kx_key_table *const kx_key_tables[];

/* The key's row; NULL: the table has none. */
const struct kx_key *kx_key_find(const struct kx_key_table *t, const char *key);

/* KN_EUNSUPPORTED with file and key for the first key of the object that no row allows. */
KN_MUST_USE int kx_keys_check(const struct kx_key_table *t, const struct kx_json *j, struct kn_err *err);

/* The same of one key and its value, whatever samplers read it. */
KN_MUST_USE int kx_key_check(const struct kx_key_table *t, const char *file, const char *key,
                             json_object *value, struct kn_err *err);

#endif
