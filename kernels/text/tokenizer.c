/* See the header. Layout: the merge table (pair of ids → rank and id), reading of the files, then encoding.
 */
#include "kernels/text/tokenizer.h"

#include <assert.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/fs.h"
#include "base/limits.h"
#include "base/map.h"
#include "kernels/io/config_keys.h"
#include "kernels/io/json.h"

#define VOCAB_MAX (1 << 20)
#define SPECIALS_MAX 4096
#define TOKEN_BYTES_MAX 1024
#define NONE UINT32_MAX

struct merge {
    uint64_t pair; /* left id << 32 | right id */
    uint32_t rank, id;
};

/* A token that is cut out of the text before anything else. */
struct special {
    char *text; /* owns */
    size_t len;
    int32_t id;
    bool normalized;         /* looked for in the clean text, not in the text as given */
    utf8proc_int32_t *clean; /* owns; its own text cleaned, when normalized */
    size_t clean_len;
};

struct kx_tokenizer {
    struct merge *merges; /* open addressing; id NONE is empty */
    size_t merge_mask;
    uint32_t byte_id[256], byte_end_id[256]; /* a byte's symbol inside of a word and at its end */
    struct special *specials;
    size_t special_count;
    int32_t bos, eos, pad, unk, id_max;
    int length;
};

/* ---- merges ---- */

static size_t merge_slot(uint64_t pair) {
    pair ^= pair >> 33;
    pair *= 0xff51afd7ed558ccdull;
    return (size_t)(pair ^ pair >> 33);
}

static const struct merge *merge_find(const struct kx_tokenizer *t, uint32_t left, uint32_t right) {
    uint64_t pair = (uint64_t)left << 32 | right;
    for (size_t i = merge_slot(pair);; i++) {
        const struct merge *m = &t->merges[i & t->merge_mask];
        if (m->id == NONE) return NULL;
        if (m->pair == pair) return m;
    }
}

static void merge_put(struct kx_tokenizer *t, struct merge new) {
    for (size_t i = merge_slot(new.pair);; i++) {
        struct merge *m = &t->merges[i & t->merge_mask];
        if (m->id != NONE && m->pair != new.pair) continue;
        *m = new;
        return;
    }
}

static int merges_alloc(struct kx_tokenizer *t, size_t count) {
    size_t cap = 16;
    while (cap < 2 * count + 2) cap *= 2;
    t->merges = malloc(cap * sizeof *t->merges);
    if (!t->merges) return KN_ENOMEM;
    for (size_t i = 0; i < cap; i++) t->merges[i].id = NONE;
    t->merge_mask = cap - 1;
    return 0;
}

/* ---- reading ---- */

/* While reading: token → id + 1, as a pointer's value. */
static uint32_t vocab_id(const struct kn_map *vocab, const char *s, size_t len) {
    uintptr_t v = (uintptr_t)kn_map_get(vocab, s, len);
    return v ? (uint32_t)(v - 1) : NONE;
}

static int read_vocab(struct kx_tokenizer *t, const char *file, json_object *o, struct kn_map *vocab,
                      struct kn_err *err) {
    json_object_object_foreach(o, token, v) {
        int64_t id = json_object_is_type(v, json_type_int) ? json_object_get_int64(v) : -1;
        size_t len = strlen(token);
        if (id < 0 || id >= VOCAB_MAX || len > TOKEN_BYTES_MAX)
            return kn_err_set(err, KN_EPARSE, "%s: vocab: %.64s: id is not between 0 and %d", file, token,
                              VOCAB_MAX - 1);
        int rc =
            kn_map_put(vocab, token, len, (void *)(uintptr_t)(id + 1)); /* JSON keys are unique already */
        if (rc) return kn_err_set(err, rc, "%s: vocab: %s", file, kn_err_words(rc));
        if (id > t->id_max) t->id_max = (int32_t)id;
    }
    return 0;
}

static int add_merge(struct kx_tokenizer *t, const char *file, size_t rank, const char *a, size_t a_len,
                     const char *b, size_t b_len, const struct kn_map *vocab, struct kn_err *err) {
    char both[2 * TOKEN_BYTES_MAX];
    if (!a_len || !b_len || a_len > TOKEN_BYTES_MAX || b_len > TOKEN_BYTES_MAX)
        return kn_err_set(err, KN_EPARSE, "%s: merge %zu: not two tokens", file, rank + 1);
    memcpy(both, a, a_len);
    memcpy(both + a_len, b, b_len);
    uint32_t l = vocab_id(vocab, a, a_len), r = vocab_id(vocab, b, b_len),
             id = vocab_id(vocab, both, a_len + b_len);
    if (l == NONE || r == NONE || id == NONE)
        return kn_err_set(err, KN_EPARSE, "%s: merge %zu: \"%.*s %.*s\": a token is not in the vocabulary",
                          file, rank + 1, (int)a_len, a, (int)b_len, b);
    merge_put(t, (struct merge){.pair = (uint64_t)l << 32 | r, .rank = (uint32_t)rank, .id = id});
    return 0;
}

/* merges.txt: "#version…", then a pair a line, the lowest rank first. */
static int read_merges_text(struct kx_tokenizer *t, const char *text, size_t len, const struct kn_map *vocab,
                            struct kn_err *err) {
    size_t lines = 1, rank = 0;
    for (size_t i = 0; i < len; i++) lines += text[i] == '\n';
    int rc = lines > VOCAB_MAX ? KN_ELIMIT : merges_alloc(t, lines);
    if (rc) return kn_err_set(err, rc, "merges.txt: %s", kn_err_words(rc));
    for (size_t at = 0; at < len && !rc;) {
        const char *line = text + at, *nl = memchr(line, '\n', len - at);
        size_t n = nl ? (size_t)(nl - line) : len - at;
        at += n + 1;
        if (n && line[n - 1] == '\r') n--;
        if (!n || (n >= 8 && !memcmp(line, "#version", 8))) continue;
        const char *space = memchr(line, ' ', n);
        if (!space || memchr(space + 1, ' ', n - (size_t)(space + 1 - line)))
            return kn_err_set(err, KN_EPARSE, "merges.txt: merge %zu: not two tokens", rank + 1);
        rc = add_merge(t, "merges.txt", rank++, line, (size_t)(space - line), space + 1,
                       n - (size_t)(space + 1 - line), vocab, err);
    }
    return rc;
}

/* tokenizer.json's model.merges: "a b" or ["a", "b"]. */
static int read_merges_json(struct kx_tokenizer *t, json_object *a, const struct kn_map *vocab,
                            struct kn_err *err) {
    static const char file[] = "tokenizer.json";
    if (!json_object_is_type(a, json_type_array))
        return kn_err_set(err, KN_EPARSE, "%s: model.merges: not a list", file);
    size_t n = json_object_array_length(a);
    int rc = n > VOCAB_MAX ? KN_ELIMIT : merges_alloc(t, n);
    if (rc) return kn_err_set(err, rc, "%s: model.merges: %s", file, kn_err_words(rc));
    for (size_t i = 0; i < n && !rc; i++) {
        json_object *e = json_object_array_get_idx(a, i);
        const char *l = NULL, *r = NULL;
        size_t l_len = 0;
        if (json_object_is_type(e, json_type_string)) {
            l = json_object_get_string(e);
            const char *space = strchr(l, ' ');
            l_len = space ? (size_t)(space - l) : 0;
            r = space ? space + 1 : NULL;
        } else if (json_object_is_type(e, json_type_array) && json_object_array_length(e) == 2) {
            l = json_object_get_string(json_object_array_get_idx(e, 0));
            r = json_object_get_string(json_object_array_get_idx(e, 1));
            l_len = l ? strlen(l) : 0;
        }
        if (!l || !r)
            return kn_err_set(err, KN_EPARSE, "%s: model.merges: merge %zu: not two tokens", file, i + 1);
        rc = add_merge(t, file, i, l, l_len, r, strlen(r), vocab, err);
    }
    return rc;
}

/* The code point that GPT-2's alphabet shows a byte as. */
static uint32_t byte_symbol(int b) {
    uint32_t next = 256;
    for (int i = 0; i < 256; i++) {
        bool shown = (i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174;
        if (i == b) return shown ? (uint32_t)b : next;
        next += !shown;
    }
    return 0;
}

static void find_bytes(struct kx_tokenizer *t, const struct kn_map *vocab) {
    for (int b = 0; b < 256; b++) {
        char s[16];
        utf8proc_ssize_t n = utf8proc_encode_char((utf8proc_int32_t)byte_symbol(b), (utf8proc_uint8_t *)s);
        t->byte_id[b] = vocab_id(vocab, s, (size_t)n);
        memcpy(s + n, "</w>", 4);
        t->byte_end_id[b] = vocab_id(vocab, s, (size_t)n + 4);
    }
}

/* Clean text as code points. out is malloc'd. The input must be UTF-8: KN_EINVAL. */
static int clean(const char *text, size_t len, utf8proc_int32_t **out, size_t *out_len) {
    const utf8proc_option_t nfc = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
    const utf8proc_uint8_t *s = (const utf8proc_uint8_t *)text;
    utf8proc_ssize_t n = utf8proc_decompose(s, (utf8proc_ssize_t)len, NULL, 0, nfc);
    if (n < 0) return n == UTF8PROC_ERROR_NOMEM ? KN_ENOMEM : KN_EINVAL;
    /* room for İ, which becomes two when lowered */
    utf8proc_int32_t *v = malloc((2 * (size_t)n + 1) * sizeof *v);
    if (!v) return KN_ENOMEM;
    n = utf8proc_decompose(s, (utf8proc_ssize_t)len, v + n, n, nfc);
    utf8proc_int32_t *from = v + n;
    n = utf8proc_normalize_utf32(from, n, nfc);
    size_t k = 0;
    for (utf8proc_ssize_t i = 0; i < n; i++) {
        utf8proc_int32_t c = from[i];
        if (c == 0x130) {
            v[k++] = 'i';
            v[k++] = 0x307;
        } else {
            v[k++] = utf8proc_tolower(c);
        }
    }
    *out = v;
    *out_len = k;
    return 0;
}

static int add_special(struct kx_tokenizer *t, const char *file, const char *text, int64_t id,
                       bool normalized, struct kn_err *err) {
    size_t len = strlen(text);
    if (!len || len > TOKEN_BYTES_MAX)
        return kn_err_set(err, KN_EPARSE, "%s: a special token is empty or too long", file);
    if (id < 0 || id >= VOCAB_MAX)
        return kn_err_set(err, KN_EPARSE, "%s: special token %.64s: not in the vocabulary", file, text);
    for (size_t i = 0; i < t->special_count; i++)
        if (!strcmp(t->specials[i].text, text)) return 0; /* the first word on it counts */
    if (t->special_count == SPECIALS_MAX)
        return kn_err_set(err, KN_ELIMIT, "%s: more than %d special tokens", file, SPECIALS_MAX);
    if (!(t->special_count & (t->special_count + 1))) { /* full at 2ⁿ − 1: grow */
        struct special *v = realloc(t->specials, (2 * t->special_count + 1) * sizeof *v);
        if (!v) return kn_err_set(err, KN_ENOMEM, "%s: out of memory", file);
        t->specials = v;
    }
    struct special *s = &t->specials[t->special_count];
    *s = (struct special){.text = strdup(text), .len = len, .id = (int32_t)id, .normalized = normalized};
    if (!s->text) return kn_err_set(err, KN_ENOMEM, "%s: out of memory", file);
    t->special_count++;
    if (id > t->id_max) t->id_max = (int32_t)id;
    if (!normalized) return 0;
    int rc = clean(text, len, &s->clean, &s->clean_len);
    if (rc == KN_ENOMEM) return kn_err_set(err, rc, "%s: out of memory", file);
    return rc ? kn_err_set(err, KN_EPARSE, "%s: special token %.64s: not UTF-8", file, text) : 0;
}

/* A token as configs write it: "text", or {"content": "text", "normalized": …}. NULL: neither. */
static const char *token_text(json_object *o, bool *normalized) {
    *normalized = false;
    if (json_object_is_type(o, json_type_string)) return json_object_get_string(o);
    json_object *c = NULL, *n = NULL;
    if (!json_object_is_type(o, json_type_object) || !json_object_object_get_ex(o, "content", &c) ||
        !json_object_is_type(c, json_type_string))
        return NULL;
    if (json_object_object_get_ex(o, "normalized", &n)) *normalized = json_object_get_boolean(n);
    return json_object_get_string(c);
}

/* {"content", "id" …}, with the options that cut more than the token refused where they would matter. */
static int add_token_object(struct kx_tokenizer *t, const char *file, json_object *o, int64_t id,
                            struct kn_err *err) {
    bool normalized;
    const char *text = token_text(o, &normalized);
    json_object *v = NULL;
    if (!text) return kn_err_set(err, KN_EPARSE, "%s: added_tokens: an added token has no content", file);
    if (id < 0 && json_object_object_get_ex(o, "id", &v)) id = json_object_get_int64(v);
    if (json_object_object_get_ex(o, "single_word", &v) && json_object_get_boolean(v))
        return kn_err_set(err, KN_EUNSUPPORTED, "%s: added token %.64s: single_word is not supported", file,
                          text);
    return add_special(t, file, text, id, normalized, err);
}

/* A symbol of the byte alphabet, with or without the mark of a word's end: no merge makes it. */
static bool is_symbol(const char *token) {
    size_t len = strlen(token);
    if (len >= 4 && !strcmp(token + len - 4, "</w>")) len -= 4;
    utf8proc_int32_t c;
    return !len || utf8proc_iterate((const utf8proc_uint8_t *)token, (utf8proc_ssize_t)len, &c) ==
                       (utf8proc_ssize_t)len;
}

/* Every token of more than one symbol is made by a merge, or cut out whole. A list of merges that was cut off
 * leaves tokens that nothing makes, and words would silently become other tokens. */
static int check_made(const struct kx_tokenizer *t, const char *file, json_object *vocab,
                      struct kn_err *err) {
    bool *made = calloc((size_t)t->id_max + 1, sizeof *made);
    if (!made) return kn_err_set(err, KN_ENOMEM, "%s: out of memory", file);
    for (size_t i = 0; i <= t->merge_mask; i++)
        if (t->merges[i].id != NONE) made[t->merges[i].id] = true;
    for (size_t i = 0; i < t->special_count; i++) made[t->specials[i].id] = true;
    size_t missing = 0;
    int64_t first = INT64_MAX;
    const char *first_token = "";
    json_object_object_foreach(vocab, token, v) {
        int64_t id = json_object_get_int64(v);
        if (made[id] || is_symbol(token)) continue;
        missing++;
        if (id < first) {
            first = id;
            first_token = token;
        }
    }
    free(made);
    if (!missing) return 0;
    return kn_err_set(
        err, KN_EPARSE,
        "%s: merges: none makes \"%.64s\" (token %lld), nor %zu more of the vocabulary; the file is "
        "not whole, or not this vocabulary's: get it again",
        file, first_token, (long long)first, missing - 1);
}

struct sources {
    struct kx_json vocab, tokenizer, config, special, added;
};

/* One of bos, eos, pad, unk. A tokenizer_config.json with added_tokens_decoder is of the new kind and says it
 * alone; beside an old one special_tokens_map.json counts first: SD2's folders pad with "!" there and with
 * "<|endoftext|>" in tokenizer_config.json. Said nowhere, it is CLIP's. */
static int named_token(struct kx_tokenizer *t, const struct sources *s, const char *key, const char *fallback,
                       const struct kn_map *vocab, int32_t *out, struct kn_err *err) {
    const char *text = fallback, *file = "tokenizer_config.json";
    bool normalized = false;
    bool alone = s->config.o && kx_json_get(&s->config, "added_tokens_decoder");
    const struct kx_json *from[] = {alone ? &s->config : &s->special, &s->config};
    for (int i = 0; i < 2; i++) {
        json_object *o = from[i]->o ? kx_json_get(from[i], key) : NULL;
        if (!o) continue;
        file = from[i]->file;
        text = token_text(o, &normalized);
        if (!text) return kn_err_set(err, KN_EPARSE, "%s: %s: not a token", file, key);
        break;
    }
    int64_t id = (int64_t)vocab_id(vocab, text, strlen(text));
    if (id == NONE) id = -1;
    for (size_t i = 0; i < t->special_count && id < 0; i++)
        if (!strcmp(t->specials[i].text, text)) id = t->specials[i].id;
    if (id < 0)
        return kn_err_set(err, KN_EPARSE, "%s: %s: \"%.64s\" is not in the vocabulary", file, key, text);
    *out = (int32_t)id;
    return add_special(t, file, text, id, normalized, err);
}

static int read_specials(struct kx_tokenizer *t, const struct sources *s, const struct kn_map *vocab,
                         struct kn_err *err) {
    int rc = 0;
    json_object *list = s->tokenizer.o ? kx_json_get(&s->tokenizer, "added_tokens") : NULL;
    size_t n = list && json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
    for (size_t i = 0; i < n && !rc; i++)
        rc = add_token_object(t, s->tokenizer.file, json_object_array_get_idx(list, i), -1, err);
    json_object *decoder = s->config.o ? kx_json_get(&s->config, "added_tokens_decoder") : NULL;
    if (!rc && decoder && json_object_is_type(decoder, json_type_object)) {
        json_object_object_foreach(decoder, key, o) {
            char *end;
            long id = strtol(key, &end, 10);
            if (*end || end == key)
                return kn_err_set(err, KN_EPARSE, "%s: added_tokens_decoder: %.32s: not an id",
                                  s->config.file, key);
            if ((rc = add_token_object(t, s->config.file, o, id, err))) break;
        }
    }
    if (!rc && s->added.o) {
        json_object_object_foreach(s->added.o, key, o) {
            int64_t id = json_object_is_type(o, json_type_int) ? json_object_get_int64(o) : -1;
            if ((rc = add_special(t, s->added.file, key, id, false, err))) break;
        }
    }
    static const char eot[] = "<|endoftext|>";
    if (!rc) rc = named_token(t, s, "bos_token", "<|startoftext|>", vocab, &t->bos, err);
    if (!rc) rc = named_token(t, s, "eos_token", eot, vocab, &t->eos, err);
    if (!rc) rc = named_token(t, s, "unk_token", eot, vocab, &t->unk, err);
    if (!rc) rc = named_token(t, s, "pad_token", eot, vocab, &t->pad, err);
    return rc;
}

static int build(struct kx_tokenizer *t, const struct sources *s, const struct kx_tokenizer_files *f,
                 int length_max, struct kn_map *vocab, struct kn_err *err) {
    static const char *const classes[] = {"CLIPTokenizer", "CLIPTokenizerFast", "TokenizersBackend", NULL};
    json_object *tokens = s->vocab.o; /* token → id */
    const char *merges_file = "merges.txt";
    int k, rc = s->config.o ? kx_json_word(&s->config, "tokenizer_class", classes, &k, err) : 0;
    if (!rc && s->config.o) rc = kx_keys_check(&kx_keys_tokenizer_config, &s->config, err);
    if (!rc && s->special.o) rc = kx_keys_check(&kx_keys_special_tokens, &s->special, err);
    if (!rc && s->tokenizer.o) rc = kx_keys_check(&kx_keys_tokenizer, &s->tokenizer, err);
    if (rc) return rc;
    if (s->tokenizer.o) {
        struct kx_json model = {.file = "tokenizer.json: model", .o = kx_json_get(&s->tokenizer, "model")};
        if (!model.o || !json_object_is_type(model.o, json_type_object))
            return kn_err_set(err, KN_EPARSE, "tokenizer.json: model: not there");
        rc = kx_keys_check(&kx_keys_tokenizer_model, &model, err);
        json_object *v = kx_json_get(&model, "vocab");
        if (!rc && (!v || !json_object_is_type(v, json_type_object)))
            rc = kn_err_set(err, KN_EPARSE, "tokenizer.json: model.vocab: not there");
        if (!rc) rc = read_vocab(t, "tokenizer.json", v, vocab, err);
        if (!rc) rc = read_merges_json(t, kx_json_get(&model, "merges"), vocab, err);
        tokens = v;
        merges_file = "tokenizer.json";
    } else if (s->vocab.o && f->merges) {
        rc = read_vocab(t, "vocab.json", s->vocab.o, vocab, err);
        if (!rc) rc = read_merges_text(t, f->merges, f->merges_len, vocab, err);
    } else {
        rc = kn_err_set(err, KN_ENOENT, "neither tokenizer.json nor vocab.json and merges.txt");
    }
    if (rc) return rc;
    find_bytes(t, vocab);
    if ((rc = read_specials(t, s, vocab, err))) return rc;
    if ((rc = check_made(t, merges_file, tokens, err))) return rc;
    double length = length_max; /* absent, transformers writes 1e30 */
    if (s->config.o) rc = kx_json_double(&s->config, "model_max_length", 3, 1e300, &length, err);
    t->length = length < length_max ? (int)length : length_max;
    return rc;
}

int kx_tokenizer_parse(const struct kx_tokenizer_files *f, int length_max, struct kx_tokenizer **out,
                       struct kn_err *err) {
    assert(length_max >= 3);
    *out = NULL;
    struct sources s = {0};
    struct kn_map *vocab = kn_map_create(VOCAB_MAX);
    struct kx_tokenizer *t = calloc(1, sizeof *t);
    int rc = vocab && t ? 0 : kn_err_set(err, KN_ENOMEM, "out of memory");
    if (!rc && f->config)
        rc = kx_json_parse("tokenizer_config.json", f->config, f->config_len, &s.config, err);
    if (!rc && f->special)
        rc = kx_json_parse("special_tokens_map.json", f->special, f->special_len, &s.special, err);
    if (!rc && f->added) rc = kx_json_parse("added_tokens.json", f->added, f->added_len, &s.added, err);
    if (!rc && f->tokenizer)
        rc = kx_json_parse("tokenizer.json", f->tokenizer, f->tokenizer_len, &s.tokenizer, err);
    else if (!rc && f->vocab)
        rc = kx_json_parse("vocab.json", f->vocab, f->vocab_len, &s.vocab, err);
    if (!rc) rc = build(t, &s, f, length_max, vocab, err);
    json_object_put(s.config.o);
    json_object_put(s.special.o);
    json_object_put(s.added.o);
    json_object_put(s.tokenizer.o);
    json_object_put(s.vocab.o);
    kn_map_destroy(vocab);
    if (rc) {
        kx_tokenizer_close(t);
        return rc;
    }
    *out = t;
    return 0;
}

void kx_tokenizer_close(struct kx_tokenizer *t) {
    if (!t) return;
    for (size_t i = 0; i < t->special_count; i++) {
        free(t->specials[i].text);
        free(t->specials[i].clean);
    }
    free(t->specials);
    free(t->merges);
    free(t);
}

int kx_tokenizer_length(const struct kx_tokenizer *t) {
    return t->length;
}

int32_t kx_tokenizer_id_max(const struct kx_tokenizer *t) {
    return t->id_max;
}

/* ---- the folder ---- */

enum { FILE_TOKENIZER, FILE_VOCAB, FILE_MERGES, FILE_CONFIG, FILE_SPECIAL, FILE_ADDED, FILE_COUNT };
static const char *const file_names[FILE_COUNT] = {
    "tokenizer.json",          "vocab.json",        "merges.txt", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json",
};

/* Paths of the files to read; an empty string for one that is not there or not needed. */
static int find_files(const char *dir, char paths[FILE_COUNT][KN_PATH_MAX], struct kn_err *err) {
    for (int i = 0; i < FILE_COUNT; i++) {
        int rc = kn_fs_join(paths[i], KN_PATH_MAX, dir, file_names[i]);
        if (rc) return kn_err_set(err, rc, "%s: path too long", dir);
        bool covered = (i == FILE_VOCAB || i == FILE_MERGES) && paths[FILE_TOKENIZER][0];
        if (covered || !kn_fs_exists(paths[i])) paths[i][0] = 0;
    }
    return 0;
}

int kx_tokenizer_paths(const char *dir, int (*each)(void *, const char *, struct kn_err *), void *ctx,
                       struct kn_err *err) {
    char paths[FILE_COUNT][KN_PATH_MAX];
    int rc = find_files(dir, paths, err);
    for (int i = 0; i < FILE_COUNT && !rc; i++)
        if (paths[i][0]) rc = each(ctx, paths[i], err);
    return rc;
}

int kx_tokenizer_open(const char *dir, int length_max, struct kx_tokenizer **out, struct kn_err *err) {
    *out = NULL;
    char paths[FILE_COUNT][KN_PATH_MAX];
    int rc = find_files(dir, paths, err);
    if (rc) return rc;
    struct kn_buf b[FILE_COUNT];
    for (int i = 0; i < FILE_COUNT; i++) kn_buf_init(&b[i], KX_JSON_BYTES_MAX);
    for (int i = 0; i < FILE_COUNT && !rc; i++)
        if (paths[i][0]) rc = kn_fs_read(paths[i], &b[i], err);
    if (!rc) {
        struct kx_tokenizer_files f = {b[FILE_VOCAB].data,  b[FILE_MERGES].data,  b[FILE_TOKENIZER].data,
                                       b[FILE_CONFIG].data, b[FILE_SPECIAL].data, b[FILE_ADDED].data,
                                       b[FILE_VOCAB].len,   b[FILE_MERGES].len,   b[FILE_TOKENIZER].len,
                                       b[FILE_CONFIG].len,  b[FILE_SPECIAL].len,  b[FILE_ADDED].len};
        rc = kx_tokenizer_parse(&f, length_max, out, err);
        if (rc) kn_err_prefix(err, "%s", dir);
    }
    for (int i = 0; i < FILE_COUNT; i++) kn_buf_fini(&b[i]);
    return rc;
}

/* ---- encoding ---- */

struct ids {
    int32_t *v; /* room for `max` */
    int count, max;
};

static void push(struct ids *out, int32_t id) {
    if (out->count < out->max) out->v[out->count++] = id;
}

/* Merges the symbols of one word in place; returns how many are left. Quadratic in a word's length, which the
 * prompt's bounds. */
static size_t merge_word(const struct kx_tokenizer *t, uint32_t *sym, uint32_t *rank, size_t n) {
    /* rank[i]: of the pair (i, i + 1) */
    for (size_t i = 0; i + 1 < n; i++) {
        const struct merge *m = merge_find(t, sym[i], sym[i + 1]);
        rank[i] = m ? m->rank : NONE;
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == NONE) break;
        sym[best] = merge_find(t, sym[best], sym[best + 1])->id;
        memmove(sym + best + 1, sym + best + 2, (n - best - 2) * sizeof *sym);
        n--;
        if (best + 1 < n) memmove(rank + best + 1, rank + best + 2, (n - best - 2) * sizeof *rank);
        for (size_t i = best ? best - 1 : 0; i <= best && i + 1 < n; i++) {
            const struct merge *m = merge_find(t, sym[i], sym[i + 1]);
            rank[i] = m ? m->rank : NONE;
        }
    }
    return n;
}

enum token_kind { SPACE, LETTER, NUMBER, OTHER };

static enum token_kind kind_of(utf8proc_int32_t c) {
    if ((c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xa0 || c == 0x1680 ||
        (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
        c == 0x3000)
        return SPACE;
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return NUMBER;
    default:
        return OTHER;
    }
}

/* Length of the ASCII word at s if it begins there, else 0. */
static size_t begins(const utf8proc_int32_t *s, size_t n, const char *word) {
    size_t i = 0;
    while (word[i] && i < n && s[i] == (unsigned char)word[i]) i++;
    return word[i] ? 0 : i;
}

/* Length of the word at s (which is no space), by CLIP's pattern. */
static size_t word_length(const utf8proc_int32_t *s, size_t n) {
    static const char *const endings[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    if (s[0] == '\'')
        for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
            size_t len = begins(s, n, endings[i]);
            if (len) return len;
        }
    enum token_kind k = kind_of(s[0]);
    size_t i = 1;
    if (k == NUMBER) return 1;
    while (i < n && kind_of(s[i]) == k) i++;
    return i;
}

struct scratch {
    uint32_t *sym, *rank; /* one a byte of clean text */
};

static void encode_word(const struct kx_tokenizer *t, const utf8proc_int32_t *s, size_t n,
                        struct scratch *tmp, struct ids *out) {
    size_t len = 0;
    for (size_t i = 0; i < n; i++) {
        utf8proc_uint8_t b[4];
        utf8proc_ssize_t k = utf8proc_encode_char(s[i], b);
        for (utf8proc_ssize_t q = 0; q < k; q++) tmp->sym[len++] = b[q];
    }
    for (size_t i = 0; i < len; i++) {
        uint32_t id = (i + 1 == len ? t->byte_end_id : t->byte_id)[tmp->sym[i]];
        tmp->sym[i] = id == NONE ? (uint32_t)t->unk : id;
    }
    len = merge_word(t, tmp->sym, tmp->rank, len);
    for (size_t i = 0; i < len; i++) push(out, (int32_t)tmp->sym[i]);
}

static void encode_clean(const struct kx_tokenizer *t, const utf8proc_int32_t *s, size_t n,
                         struct scratch *tmp, struct ids *out) {
    for (size_t i = 0; i < n && out->count < out->max;) {
        if (kind_of(s[i]) == SPACE) {
            i++;
            continue;
        }
        /* CLIP's pattern keeps these whole, so that "|>" never joins what follows; the byte alphabet's own
         * pattern then cuts them in three. Written in lower case they are special tokens and never come here.
         */
        size_t len = begins(s + i, n - i, "<|startoftext|>");
        if (!len) len = begins(s + i, n - i, "<|endoftext|>");
        if (len) {
            encode_word(t, s + i, 2, tmp, out);
            encode_word(t, s + i + 2, len - 4, tmp, out);
            encode_word(t, s + i + len - 2, 2, tmp, out);
        } else {
            len = word_length(s + i, n - i);
            encode_word(t, s + i, len, tmp, out);
        }
        i += len;
    }
}

/* Text between special tokens of the first kind: cleaned, cut at those of the second kind, words between. */
static int encode_piece(const struct kx_tokenizer *t, const char *text, size_t len, struct ids *out) {
    if (!len) return 0;
    utf8proc_int32_t *s;
    size_t n;
    int rc = clean(text, len, &s, &n);
    if (rc) return rc;
    struct scratch tmp = {malloc((4 * n + 1) * sizeof *tmp.sym), malloc((4 * n + 1) * sizeof *tmp.rank)};
    if (!tmp.sym || !tmp.rank) rc = KN_ENOMEM;
    size_t from = 0;
    for (size_t i = 0; i < n && !rc;) {
        const struct special *best = NULL;
        for (size_t k = 0; k < t->special_count; k++) {
            const struct special *p = &t->specials[k];
            if (p->normalized && p->clean_len && p->clean_len <= n - i &&
                (!best || p->clean_len > best->clean_len) &&
                !memcmp(p->clean, s + i, p->clean_len * sizeof *s))
                best = p;
        }
        if (!best) {
            i++;
            continue;
        }
        encode_clean(t, s + from, i - from, &tmp, out);
        push(out, best->id);
        from = i += best->clean_len;
    }
    if (!rc) encode_clean(t, s + from, n - from, &tmp, out);
    free(tmp.sym);
    free(tmp.rank);
    free(s);
    return rc;
}

int kx_tokenizer_encode(const struct kx_tokenizer *t, const char *text, int32_t *ids, struct kn_err *err) {
    struct ids out = {.v = ids + 1, .max = t->length - 2};
    size_t n = strlen(text), from = 0;
    int rc = utf8proc_decompose((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n, NULL, 0, 0) < 0
                 ? KN_EINVAL
                 : 0;
    for (size_t i = 0; i < n && !rc;) {
        const struct special *best = NULL;
        for (size_t k = 0; k < t->special_count; k++) {
            const struct special *p = &t->specials[k];
            if (!p->normalized && p->len <= n - i && (!best || p->len > best->len) &&
                !memcmp(p->text, text + i, p->len))
                best = p;
        }
        if (!best) {
            i++;
            continue;
        }
        rc = encode_piece(t, text + from, i - from, &out);
        push(&out, best->id);
        from = i += best->len;
    }
    if (!rc) rc = encode_piece(t, text + from, n - from, &out);
    if (rc) return kn_err_set(err, rc, "prompt: %s", rc == KN_EINVAL ? "not UTF-8" : kn_err_words(rc));
    ids[0] = t->bos;
    ids[out.count + 1] = t->eos;
    for (int i = out.count + 2; i < t->length; i++) ids[i] = t->pad;
    return 0;
}
