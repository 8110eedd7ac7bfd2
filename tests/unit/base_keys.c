/* Key pairs in files. */
#include "tests/unit/check.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/hash.h"
#include "base/keys.h"

static char above[64], dir[128], file[160];

static void begin(void) {
    strcpy(above, "/tmp/kn-keys-XXXXXX");
    CHECK(mkdtemp(above) != NULL);
    snprintf(dir, sizeof dir, "%s/keys", above);
    snprintf(file, sizeof file, "%s/a.key", dir);
}

static void end(void) {
    unlink(file);
    CHECK_INT(rmdir(dir), 0); /* nothing else is left in it */
    CHECK_INT(rmdir(above), 0);
}

static unsigned mode(const char *path) {
    struct stat st;
    CHECK_INT(stat(path, &st), 0);
    return st.st_mode & 07777;
}

TEST(promise_a_pair_is_made_once_and_its_user_alone_may_read_it) {
    struct kn_key_pair a = {0}, b = {0};
    struct kn_err err = {0};
    begin();
    mode_t mask = umask(0);
    CHECK_MSG(kn_key_pair_keep(dir, "a.key", &a, &err) == 0, "%s", err.text);
    umask(mask);
    CHECK_INT(mode(dir), 0700);
    CHECK_INT(mode(file), 0600);
    CHECK_INT(kn_key_pair_keep(dir, "a.key", &b, &err), 0);
    CHECK(memcmp(&a, &b, sizeof a) == 0);
    kn_key_pair_forget(&b);
    for (size_t i = 0; i < sizeof b; i++) CHECK_INT(((uint8_t *)&b)[i], 0);
    end();
}

TEST(promise_wider_modes_are_refused) {
    static const unsigned wide[] = {0640, 0604, 0660, 0644};
    struct kn_key_pair a;
    begin();
    CHECK_INT(kn_key_pair_keep(dir, "a.key", &a, NULL), 0);
    for (size_t i = 0; i < 4; i++) {
        struct kn_err err = {0};
        CHECK_INT(chmod(file, wide[i]), 0);
        CHECK_INT(kn_key_pair_keep(dir, "a.key", &a, &err), KN_EPERM);
        CHECK(strstr(err.text, file) && strstr(err.text, "chmod 0600"));
    }
    CHECK_INT(chmod(file, 0600), 0);
    struct kn_err err = {0};
    CHECK_INT(chmod(dir, 0750), 0);
    CHECK_INT(kn_key_pair_keep(dir, "a.key", &a, &err), KN_EPERM);
    CHECK(strstr(err.text, "chmod 0700"));
    CHECK_INT(chmod(dir, 0700), 0);
    CHECK_INT(kn_key_pair_keep(dir, "a.key", &a, NULL), 0);
    end();
}

TEST(what_is_no_pair_is_refused_and_left_as_it_is) {
    static const char *const texts[] = {"", "kiln key pair 1\n", "kiln key pair 2\n00\n", "secret\n"};
    struct kn_key_pair a;
    begin();
    CHECK_INT(mkdir(dir, 0700), 0);
    mode_t mask = umask(0077);
    for (size_t i = 0; i < 4; i++) {
        struct kn_err err = {0};
        CHECK_INT(kn_fs_replace(file, texts[i], strlen(texts[i]), false, &err), 0);
        CHECK_INT(kn_key_pair_keep(dir, "a.key", &a, &err), KN_EPARSE);
        struct stat st;
        CHECK_INT(stat(file, &st), 0);
        CHECK_INT((int)st.st_size, (int)strlen(texts[i]));
    }
    umask(mask);
    unlink(file);
    CHECK_INT(symlink("/dev/null", file), 0);
    CHECK_INT(kn_key_pair_keep(dir, "a.key", &a, NULL), KN_EIO);
    end();
}

static void *keep(void *arg) {
    struct kn_err err = {0};
    int rc = kn_key_pair_keep(dir, "a.key", arg, &err);
    return rc == 0 ? arg : NULL;
}

TEST(promise_who_comes_at_once_gets_the_same_pair) {
    enum { COUNT = 16 };
    struct kn_key_pair p[COUNT];
    pthread_t t[COUNT];
    begin();
    for (int i = 0; i < COUNT; i++) CHECK_INT(pthread_create(&t[i], NULL, keep, &p[i]), 0);
    for (int i = 0; i < COUNT; i++) {
        void *ok = NULL;
        pthread_join(t[i], &ok);
        CHECK(ok != NULL);
    }
    for (int i = 1; i < COUNT; i++) CHECK(memcmp(&p[0], &p[i], sizeof p[0]) == 0);
    end();
}

/* RFC 7748, section 6.1: Bob's. */
TEST(the_public_half_is_as_the_standard_has_it) {
    static const char text[] =
        "kiln key pair 1\n5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb\n";
    struct kn_key_pair p;
    char hex[2 * KN_KEY_BYTES + 1], name[KN_FINGERPRINT_TEXT];
    begin();
    CHECK_INT(mkdir(dir, 0700), 0);
    mode_t mask = umask(0077);
    CHECK_INT(kn_fs_replace(file, text, strlen(text), false, NULL), 0);
    umask(mask);
    CHECK_INT(kn_key_pair_keep(dir, "a.key", &p, NULL), 0);
    kn_hex(p.own.bytes, KN_KEY_BYTES, hex);
    CHECK_STR(hex, "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
    kn_fingerprint(&p.own, name);
    CHECK_INT((int)strlen(name), 16);
    end();
}
