/* The tokenizer's rules on a vocabulary small enough to read. With KILN_CLIP_BPE (a folder with CLIP's own
 * vocab.json and merges.txt) the ids of CLIP too; tests/golden compares texts against transformers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "kernels/text/tokenizer.h"
#include "tests/unit/check.h"

enum { LENGTH = 24 };

/* Bytes as symbols, each with and without </w>: id b and 256 + b for the printable ones; then a few merges.
 */
static void vocabulary(struct kn_buf *out) {
    kn_buf_init(out, 1 << 16);
    CHECK(!kn_buf_appends(out, "{"));
    for (int b = 33; b < 127; b++) {
        const char *escape = b == '"' || b == '\\' ? "\\" : "";
        CHECK(!kn_buf_appendf(out, "\"%s%c\":%d,\"%s%c</w>\":%d,", escape, b, b, escape, b, 256 + b));
    }
    /* é is the bytes c3 a9, which the byte alphabet shows as Ã and © */
    CHECK(!kn_buf_appends(
        out,
        "\"\xc3\x83\":195,\"\xc2\xa9</w>\":425,"
        "\"ca\":600,\"cat</w>\":601,\"at</w>\":602,\"<|startoftext|>\":700,\"<|endoftext|>\":701}"));
}

/* NULL for a file that is not there. */
static struct kx_tokenizer *open_with(const char *config, const char *special) {
    struct kn_buf vocab;
    vocabulary(&vocab);
    static const char merges[] = "#version: 0.2\nc a\na t</w>\nca t</w>\n";
    struct kx_tokenizer_files f = {.vocab = vocab.data,
                                   .vocab_len = vocab.len,
                                   .merges = merges,
                                   .merges_len = sizeof merges - 1,
                                   .config = config,
                                   .config_len = config ? strlen(config) : 0,
                                   .special = special,
                                   .special_len = special ? strlen(special) : 0};
    struct kx_tokenizer *t;
    struct kn_err err = {0};
    CHECK_MSG(!kx_tokenizer_parse(&f, LENGTH, &t, &err), "%s", err.text);
    kn_buf_fini(&vocab);
    return t;
}

static struct kx_tokenizer *open_small(const char *config) {
    return open_with(config, NULL);
}

static void check_ids(const char *config, const char *text, const int32_t *want, int n) {
    struct kx_tokenizer *t = open_small(config);
    int32_t ids[LENGTH];
    struct kn_err err = {0};
    CHECK_MSG(!kx_tokenizer_encode(t, text, ids, &err), "%s", err.text);
    CHECK_INT(ids[0], 700);
    for (int i = 0; i < n; i++)
        CHECK_MSG(ids[i + 1] == want[i], "%s: id %d is %d, not %d", text, i, ids[i + 1], want[i]);
    CHECK_INT(ids[n + 1], 701);
    kx_tokenizer_close(t);
}
#define CHECK_IDS(config, text, ...)                                                                         \
    check_ids(config, text, (const int32_t[]){__VA_ARGS__},                                                  \
              (int)(sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t)))

TEST(pairs_merge_by_rank_within_a_word) {
    CHECK_IDS(NULL, "cat", 601);
    CHECK_IDS(NULL, "at", 602);
    CHECK_IDS(NULL, "ca", 'c', 256 + 'a');
    CHECK_IDS(NULL, "cats", 600, 't', 256 + 's');
    CHECK_IDS(NULL, "bat cat", 'b', 602, 601);
}

TEST(merges_that_were_cut_off_are_refused) {
    static const char whole[] = "#version: 0.2\nc a\na t</w>\nca t</w>\n";
    static const struct {
        const char *merges, *says;
    } rows[] = {
        {"#version: 0.2\nc a\na t</w>\n", "none makes \"cat</w>\" (token 601), nor 0 more"},
        {"#version: 0.2\nc a\na t</w>", "none makes \"cat</w>\" (token 601), nor 0 more"},
        {"#version: 0.2\n", "none makes \"ca\" (token 600), nor 2 more"},
        {"#version: 0.2\nc a\na t</w>\nca", "not two tokens"},
        {"#version: 0.2\nc a\na t</w>\nca t</", "not in the vocabulary"},
    };
    struct kn_buf vocab;
    vocabulary(&vocab);
    struct kx_tokenizer_files f = {
        .vocab = vocab.data, .vocab_len = vocab.len, .merges = whole, .merges_len = sizeof whole - 1};
    struct kx_tokenizer *t;
    struct kn_err err = {0};
    CHECK_MSG(!kx_tokenizer_parse(&f, LENGTH, &t, &err), "%s", err.text);
    kx_tokenizer_close(t);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        f.merges = rows[i].merges;
        f.merges_len = strlen(rows[i].merges);
        CHECK_INT(kx_tokenizer_parse(&f, LENGTH, &t, &err), KN_EPARSE);
        CHECK_MSG(strstr(err.text, "merges.txt: ") && strstr(err.text, rows[i].says), "row %zu: %s", i,
                  err.text);
    }
    kn_buf_fini(&vocab);
}

TEST(case_is_folded_and_white_space_only_separates) {
    CHECK_IDS(NULL, "  CAT\t\n Cat\xc2\xa0", 601, 601);
}

TEST(endings_digits_and_signs_are_words_of_their_own) {
    CHECK_IDS(NULL, "cat's", 601, '\'', 256 + 's');
    CHECK_IDS(NULL, "CAT'LL", 601, '\'', 'l', 256 + 'l');
    CHECK_IDS(NULL, "cat12", 601, 256 + '1', 256 + '2');
    CHECK_IDS(NULL, "cat!?,cat", 601, '!', '?', 256 + ',', 601);
}

TEST(text_is_composed_before_it_is_cut_in_bytes) {
    CHECK_IDS(NULL, "\xc3\xa9", 195, 425);  /* é */
    CHECK_IDS(NULL, "e\xcc\x81", 195, 425); /* e and a combining accent */
    CHECK_IDS(NULL, "\xc3\x89", 195, 425);  /* É */
}

TEST(a_symbol_that_is_not_in_the_vocabulary_is_the_unknown_token) {
    CHECK_IDS(NULL, "\xe7\x8c\xab", 701, 701, 701);
}

TEST(special_tokens_are_cut_out_first) {
    CHECK_IDS(NULL, "cat<|endoftext|>cat", 601, 701, 601);
    CHECK_IDS("{\"pad_token\":\"!\"}", "cat!!cat", 601, '!', '!', 601);
}

TEST(long_text_is_cut_and_short_text_is_padded) {
    struct kx_tokenizer *t = open_small("{\"pad_token\":\"!\",\"model_max_length\":6}");
    struct kn_err err = {0};
    int32_t ids[LENGTH];
    CHECK_INT(kx_tokenizer_length(t), 6);
    CHECK(!kx_tokenizer_encode(t, "cat cat cat cat cat cat", ids, &err));
    CHECK_MEM(ids, ((const int32_t[]){700, 601, 601, 601, 601, 701}), 6 * sizeof *ids);
    CHECK(!kx_tokenizer_encode(t, "", ids, &err));
    CHECK_MEM(ids, ((const int32_t[]){700, 701, '!', '!', '!', '!'}), 6 * sizeof *ids);
    kx_tokenizer_close(t);
}

/* As transformers 5.23 has it, of two files that do not agree. */
TEST(the_pad_token_is_that_of_the_file_that_counts) {
    static const char decoder[] =
        "{\"pad_token\":\"<|endoftext|>\",\"added_tokens_decoder\":{\"700\":"
        "{\"content\":\"<|startoftext|>\"}}}";
    static const struct {
        const char *config, *special;
        int32_t pad, bang; /* and what "!" in a text is */
    } rows[] = {
        {"{\"pad_token\":\"<|endoftext|>\"}", "{\"pad_token\":\"!\"}", '!', '!'}, /* SD2's folders */
        {"{\"pad_token\":\"!\"}", "{\"pad_token\":\"<|endoftext|>\"}", 701, 256 + '!'},
        {"{}", "{\"pad_token\":{\"content\":\"!\"}}", '!', '!'},
        {"{\"pad_token\":\"!\"}", "{}", '!', '!'},
        {NULL, NULL, 701, 256 + '!'},
        {decoder, "{\"pad_token\":\"!\"}", 701, 256 + '!'},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct kx_tokenizer *t = open_with(rows[i].config, rows[i].special);
        struct kn_err err = {0};
        int32_t ids[LENGTH];
        CHECK(!kx_tokenizer_encode(t, "cat!", ids, &err));
        CHECK_MSG(ids[2] == rows[i].bang && ids[3] == 701 && ids[4] == rows[i].pad, "row %zu: %d %d", i,
                  ids[2], ids[4]);
        kx_tokenizer_close(t);
    }
}

TEST(text_that_is_not_utf8_is_refused) {
    struct kx_tokenizer *t = open_small(NULL);
    struct kn_err err = {0};
    int32_t ids[LENGTH];
    CHECK_INT(kx_tokenizer_encode(t, "cat \xff", ids, &err), KN_EINVAL);
    CHECK_INT(kx_tokenizer_encode(t, "\xed\xa0\x80", ids, &err), KN_EINVAL);
    kx_tokenizer_close(t);
}

TEST(a_word_as_long_as_a_prompt_may_be_is_encoded) {
    struct kx_tokenizer *t = open_small(NULL);
    struct kn_err err = {0};
    int32_t ids[LENGTH];
    char *word = malloc(8193);
    CHECK(word);
    for (int i = 0; i < 8192; i++) word[i] = "ca"[i % 2];
    word[8192] = 0;
    CHECK(!kx_tokenizer_encode(t, word, ids, &err));
    CHECK_INT(ids[1], 600);
    CHECK_INT(ids[LENGTH - 1], 701);
    free(word);
    kx_tokenizer_close(t);
}

TEST(broken_files_are_refused_with_file_and_field) {
    static const struct {
        const char *vocab, *merges, *tokenizer, *config, *says;
    } bad[] = {
        {NULL, NULL, NULL, NULL, "neither"},
        {"{\"a\":-1}", "", NULL, NULL, "vocab.json: vocab: a"},
        {"{\"a\":1e9}", "", NULL, NULL, "vocab.json: vocab: a"},
        {"{\"a\":0,\"b\":1}", "a b\n", NULL, NULL, "merges.txt: merge 1"},
        {"{\"a\":0,\"b\":1}", "ab\n", NULL, NULL, "merges.txt: merge 1"},
        {"{\"a\":0,\"b\":1}", "a b c\n", NULL, NULL, "merges.txt: merge 1"},
        {"{\"a\":0}", "", NULL, NULL, "bos_token"},
        {"{\"a\":0}", "", NULL, "{\"tokenizer_class\":\"T5Tokenizer\"}", "T5Tokenizer"},
        {"[", "", NULL, NULL, "vocab.json"},
        {NULL, NULL, "{\"model\":{\"type\":\"Unigram\"}}", NULL, "Unigram"},
        {NULL, NULL, "{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[1]}}", NULL, "merge 1"},
        {NULL, NULL, "{\"model\":{\"type\":\"BPE\"}}", NULL, "model.vocab"},
        {NULL, NULL, "{}", NULL, "model"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct kx_tokenizer_files f = {.vocab = bad[i].vocab,
                                       .merges = bad[i].merges,
                                       .tokenizer = bad[i].tokenizer,
                                       .config = bad[i].config};
        if (f.vocab) f.vocab_len = strlen(f.vocab);
        if (f.merges) f.merges_len = strlen(f.merges);
        if (f.tokenizer) f.tokenizer_len = strlen(f.tokenizer);
        if (f.config) f.config_len = strlen(f.config);
        struct kx_tokenizer *t;
        struct kn_err err = {0};
        CHECK_MSG(kx_tokenizer_parse(&f, LENGTH, &t, &err), "row %zu", i);
        CHECK_MSG(strstr(err.text, bad[i].says), "row %zu: %s", i, err.text);
    }
}

TEST(clips_own_vocabulary_gives_clips_ids) {
    const char *dir = getenv("KILN_CLIP_BPE");
    if (!dir) SKIP("KILN_CLIP_BPE names no folder with CLIP's vocab.json and merges.txt");
    struct kx_tokenizer *t;
    struct kn_err err = {0};
    CHECK_MSG(!kx_tokenizer_open(dir, 77, &t, &err), "%s", err.text);
    int32_t ids[77];
    CHECK(!kx_tokenizer_encode(t, "a photo of a Cat's 123", ids, &err));
    CHECK_MEM(ids, ((const int32_t[]){49406, 320, 1125, 539, 320, 2368, 568, 272, 273, 274, 49407}),
              11 * sizeof *ids);
    kx_tokenizer_close(t);
}
