/* Tokens: as a text, from where they may come, and what a farm keeps of them. */
#include "tests/unit/check.h"

#include <fcntl.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/token.h"

static char dir[64], file[96];

static void begin(void) {
    strcpy(dir, "/tmp/kn-token-XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
    snprintf(file, sizeof file, "@%s/token", dir);
}

static void end(void) {
    unlink(file + 1);
    CHECK_INT(rmdir(dir), 0);
}

static void make(struct kn_token *t, char text[KN_TOKEN_TEXT]) {
    struct kn_public_key server;
    for (size_t i = 0; i < KN_KEY_BYTES; i++) server.bytes[i] = (uint8_t)(i * 7);
    CHECK_INT(kn_token_make(&server, t, NULL), 0);
    kn_token_format(t, text);
}

static bool same(const struct kn_token *a, const struct kn_token *b) {
    return memcmp(a, b, sizeof *a) == 0;
}

TEST(a_token_is_one_word_that_no_shell_changes) {
    struct kn_token t, back;
    char text[KN_TOKEN_TEXT];
    make(&t, text);
    CHECK_INT((int)strlen(text), (int)KN_TOKEN_TEXT - 1);
    CHECK_INT((int)strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789."), (int)strlen(text));
    CHECK_INT(kn_token_parse(text, &back, NULL), 0);
    CHECK(same(&t, &back));
    struct kn_token other;
    char other_text[KN_TOKEN_TEXT];
    make(&other, other_text);
    CHECK(memcmp(t.id, other.id, sizeof t.id) && memcmp(t.secret, other.secret, sizeof t.secret));
}

TEST(what_is_not_whole_is_refused_and_its_text_is_not_repeated) {
    struct kn_token t, back;
    char text[KN_TOKEN_TEXT], wrong[KN_TOKEN_TEXT + 8];
    make(&t, text);
    for (size_t len = 0; len < strlen(text); len++) {
        struct kn_err err = {0};
        memcpy(wrong, text, len);
        wrong[len] = '\0';
        CHECK_INT(kn_token_parse(wrong, &back, &err), KN_EPARSE);
        CHECK(!strstr(err.text, text + KN_TOKEN_TEXT - 9));
    }
    snprintf(wrong, sizeof wrong, "%s0", text);
    CHECK_INT(kn_token_parse(wrong, &back, NULL), KN_EPARSE);
    snprintf(wrong, sizeof wrong, "%s", text);
    wrong[4] = '2';
    CHECK_INT(kn_token_parse(wrong, &back, NULL), KN_EPARSE);
    memcpy(wrong, text, sizeof text);
    wrong[10] = '.';
    CHECK_INT(kn_token_parse(wrong, &back, NULL), KN_EPARSE);
}

TEST(promise_a_token_on_the_command_line_is_refused_with_the_ways_that_there_are) {
    struct kn_token t, back;
    char text[KN_TOKEN_TEXT];
    struct kn_err err = {0};
    make(&t, text);
    CHECK_INT(kn_token_read(text, &back, &err), KN_EINVAL);
    CHECK(strstr(err.text, "@FILE") && strstr(err.text, "KILN_TOKEN"));
    CHECK(!strstr(err.text, text + KN_TOKEN_TEXT - 9));
}

TEST(a_token_comes_from_a_file) {
    struct kn_token t, back;
    char text[KN_TOKEN_TEXT], line[KN_TOKEN_TEXT + 2];
    struct kn_err err = {0};
    make(&t, text);
    begin();
    CHECK_INT(kn_token_read(file, &back, &err), KN_ENOENT);
    int n = snprintf(line, sizeof line, "%s\n", text);
    CHECK_INT(kn_fs_replace(file + 1, line, (size_t)n, false, &err), 0);
    CHECK_MSG(kn_token_read(file, &back, &err) == 0, "%s", err.text);
    CHECK(same(&t, &back));
    CHECK_INT(kn_fs_replace(file + 1, "", 0, false, &err), 0);
    CHECK_INT(kn_token_read(file, &back, &err), KN_EPARSE);
    CHECK(strstr(err.text, "empty"));
    CHECK_INT(kn_fs_replace(file + 1, "not a token\n", 12, false, &err), 0);
    CHECK_INT(kn_token_read(file, &back, &err), KN_EPARSE);
    CHECK(strstr(err.text, file + 1));
    end();
}

/* The environment as others see it: the kernel shows the memory that the process was started with, or what was put there. */
TEST(promise_a_token_does_not_stay_in_the_environment) {
    static char entry[sizeof "KILN_TOKEN=" + KN_TOKEN_TEXT];
    struct kn_token t, back;
    char text[KN_TOKEN_TEXT];
    make(&t, text);
    unsetenv("KILN_TOKEN");
    CHECK_INT(kn_token_read(NULL, &back, NULL), KN_ENOENT);
    snprintf(entry, sizeof entry, "KILN_TOKEN=%s", text);
    CHECK_INT(putenv(entry), 0);
    CHECK_INT(kn_token_read(NULL, &back, NULL), 0);
    CHECK(same(&t, &back));
    CHECK(getenv("KILN_TOKEN") == NULL);
    for (size_t i = sizeof "KILN_TOKEN=" - 1; i < sizeof entry; i++) CHECK_INT(entry[i], 0);
}

TEST(a_farm_keeps_a_digest_that_fits_one_token_alone) {
    struct kn_token t;
    char text[KN_TOKEN_TEXT];
    kn_digest kept;
    make(&t, text);
    kn_token_digest(t.id, t.secret, kept);
    CHECK(kn_token_fits(t.id, t.secret, kept));
    for (size_t bit = 0; bit < 8 * KN_TOKEN_SECRET_BYTES; bit++) {
        t.secret[bit / 8] ^= (uint8_t)(1u << bit % 8);
        CHECK(!kn_token_fits(t.id, t.secret, kept));
        t.secret[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    t.id[0] ^= 1;
    CHECK(!kn_token_fits(t.id, t.secret, kept));
}
