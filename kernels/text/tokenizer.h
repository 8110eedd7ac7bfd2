/* CLIP's tokenizer: text to the ids that the text encoder reads. Byte-pair encoding (Sennrich et al. 2016)
 * over GPT-2's byte alphabet, with CLIP's clean-up and pattern (openai/CLIP simple_tokenizer.py,
 * huggingface/transformers models/clip/tokenization_clip.py):
 *
 *   special tokens cut the text first; then NFC, lower case; words are 's 't 're 've 'm 'll 'd, runs of
 * letters (\p{L}), single digits
 *   (\p{N}), runs of anything else but white space; a word's UTF-8 bytes are its symbols, the last with
 * "</w>"; the pair of the lowest rank is merged until none is left. [bos] ids [eos], cut to the length,
 * padded with the pad token.
 *
 * Immutable once open; any number of threads may encode. */
#ifndef KILN_KERNELS_TOKENIZER_H
#define KILN_KERNELS_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct kx_tokenizer;

/* The bytes of the folder's files; NULL for one that is not there. */
struct kx_tokenizer_files {
    const char *vocab, *merges;  /* vocab.json, merges.txt */
    const char *tokenizer;       /* tokenizer.json, which counts before those two */
    const char *config;          /* tokenizer_config.json */
    const char *special, *added; /* special_tokens_map.json, added_tokens.json (old writers) */
    size_t vocab_len, merges_len, tokenizer_len, config_len, special_len, added_len;
};

/* Reads DIR (a model's tokenizer folder). length_max: the text encoder's positions; the tokenizer's own
 * model_max_length may be less. KN_ENOENT, KN_EPARSE, KN_EUNSUPPORTED with file and field. */
KN_MUST_USE int kx_tokenizer_open(const char *dir, int length_max, struct kx_tokenizer **out,
                                  struct kn_err *err);
KN_MUST_USE int kx_tokenizer_parse(const struct kx_tokenizer_files *files, int length_max,
                                   struct kx_tokenizer **out, struct kn_err *err);
void kx_tokenizer_close(struct kx_tokenizer *t); /* NULL is fine */
/* Calls each(ctx, path) for every file in DIR that kx_tokenizer_open would read; stops at a non-zero answer
 * and returns it. */
KN_MUST_USE int kx_tokenizer_paths(const char *dir,
                                   int (*each)(void *ctx, const char *path, struct kn_err *err), void *ctx,
                                   struct kn_err *err);

int kx_tokenizer_length(const struct kx_tokenizer *t);     /* ids a text */
int32_t kx_tokenizer_id_max(const struct kx_tokenizer *t); /* the largest id that can come out */
/* ids: kx_tokenizer_length() of them. KN_EINVAL: not UTF-8. KN_ENOMEM. */
KN_MUST_USE int kx_tokenizer_encode(const struct kx_tokenizer *t, const char *text, int32_t *ids,
                                    struct kn_err *err);

#endif
