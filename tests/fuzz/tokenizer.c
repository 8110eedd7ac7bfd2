/* The tokenizer. The first byte chooses what the rest is: a text for a small sound vocabulary, or one of the
 * tokenizer's files beside sound others. What must hold: a failure names a file; what opens encodes, gives
 * exactly its length of ids, all of them ids that it can give, framed by the same two tokens; and encoding is
 * a function of the text. */
#include "kernels/text/tokenizer.h"

#include <string.h>

#include "tests/fuzz/fuzz.h"

enum { LENGTH = 20 };

static const char vocab[] =
    "{\"a\":0,\"b\":1,\"c\":2,\"a</w>\":3,\"b</w>\":4,\"c</w>\":5,\"ab\":6,\"abc</w>\":7,\"1</w>\":8,\"'\":9,"
    "\"s</w>\":10,\"<|startoftext|>\":11,\"<|endoftext|>\":12,\"!</w>\":13,\"\xc3\x83\":14}";
static const char merges[] = "#version: 0.2\na b\nab c</w>\n";
static const char config[] =
    "{\"pad_token\":\"a\",\"eos_token\":{\"content\":\"<|endoftext|>\",\"normalized\":true}}";

static void use(const struct kx_tokenizer *t, const char *text) {
    int32_t one[LENGTH], two[LENGTH];
    struct kn_err err = {0};
    int n = kx_tokenizer_length(t), rc = kx_tokenizer_encode(t, text, one, &err);
    FUZZ_CHECK(n >= 3 && n <= LENGTH);
    FUZZ_CHECK(rc == 0 || (rc == KN_EINVAL && err.text[0]));
    if (rc) return;
    for (int i = 0; i < n; i++) FUZZ_CHECK(one[i] >= 0 && one[i] <= kx_tokenizer_id_max(t));
    FUZZ_CHECK(kx_tokenizer_encode(t, text, two, &err) == 0 && !memcmp(one, two, (size_t)n * sizeof *one));
}

int kn_fuzz(const uint8_t *data, size_t size) {
    if (!size) return 0;
    char *text = malloc(size);
    FUZZ_CHECK(text);
    memcpy(text, data + 1, size - 1);
    text[size - 1] = 0;
    const char *raw = (const char *)data + 1;
    struct kx_tokenizer_files f = {.vocab = vocab,
                                   .vocab_len = sizeof vocab - 1,
                                   .merges = merges,
                                   .merges_len = sizeof merges - 1,
                                   .config = config,
                                   .config_len = sizeof config - 1};
    switch (data[0] % 7) {
    case 1:
        f.vocab = raw, f.vocab_len = size - 1;
        break;
    case 2:
        f.merges = raw, f.merges_len = size - 1;
        break;
    case 3:
        f.tokenizer = raw, f.tokenizer_len = size - 1;
        break;
    case 4:
        f.config = raw, f.config_len = size - 1;
        break;
    case 5:
        f.special = raw, f.special_len = size - 1;
        break;
    case 6:
        f.added = raw, f.added_len = size - 1;
        break;
    default:
        break;
    }
    struct kx_tokenizer *t = NULL;
    struct kn_err err = {0};
    int rc = kx_tokenizer_parse(&f, LENGTH, &t, &err);
    FUZZ_CHECK(rc ? !t && err.code == rc && err.text[0] : t != NULL);
    if (t) {
        use(t, data[0] % 7 ? "abc a'S 1<|endoftext|> \xc3\xa9!" : text);
        kx_tokenizer_close(t);
    }
    free(text);
    return 0;
}
