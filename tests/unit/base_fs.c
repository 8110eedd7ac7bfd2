/* Files: whole reads with a maximum, atomic replacement, directories. Each test has a folder of its own. */
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/hash.h"
#include "tests/unit/check.h"

static char dir[64];

static const char *at(const char *name) {
    static char paths[4][256];
    static int turn;
    char *path = paths[turn++ % 4];
    CHECK_INT(kn_fs_join(path, sizeof paths[0], dir, name), 0);
    return path;
}

static void begin(void) {
    memcpy(dir, "/tmp/kn-fs-XXXXXX", sizeof "/tmp/kn-fs-XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
}

static void end(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", dir);
    CHECK(system(command) == 0);
}

TEST(a_replaced_file_reads_back_and_leaves_nothing_beside_it) {
    struct kn_err err = {0};
    struct kn_buf b;
    begin();
    kn_buf_init(&b, 100);
    CHECK_INT(kn_fs_replace(at("f"), "one", 3, true, &err), 0);
    CHECK_INT(kn_fs_replace(at("f"), "two!", 4, false, &err), 0);
    CHECK_INT(kn_fs_read(at("f"), &b, &err), 0);
    CHECK_STR(b.data, "two!");
    CHECK_INT(kn_fs_read(at("f"), &b, &err), 0); /* appends */
    CHECK_STR(b.data, "two!two!");
    CHECK(unlink(at("f")) == 0);
    CHECK(rmdir(dir) == 0); /* no temporary file was left */
    kn_buf_fini(&b);
}

TEST(what_killed_writers_left_beside_a_file_is_removed_and_nothing_else) {
    static const char *const names[] = {"a.json",
                                        "a.json.tmp.0123ab",
                                        "a.json.tmp.ffffff",
                                        "a.json.tmp.notes",
                                        "b.json.tmp.0123ab",
                                        "a.json.tmp.0123abc",
                                        "temp-rewriteaof-7.aof"};
    static const bool stays[] = {true, false, false, true, true, true, true};
    begin();
    for (size_t i = 0; i < 7; i++) {
        FILE *f = fopen(at(names[i]), "w");
        CHECK(f != NULL);
        fclose(f);
    }
    CHECK_INT((int)kn_fs_remove_temps(at("a.json"), 60000), 0); /* they are young */
    CHECK_INT((int)kn_fs_remove_temps(at("a.json"), 0), 2);
    for (size_t i = 0; i < 7; i++) CHECK_MSG(kn_fs_exists(at(names[i])) == stays[i], "%s", names[i]);
    CHECK_INT((int)kn_fs_remove_prefixed(dir, "temp-"), 1);
    CHECK_INT((int)kn_fs_remove_prefixed(dir, ""), 4);
    CHECK(rmdir(dir) == 0);
}

TEST(a_replaced_file_has_the_mode_that_the_umask_leaves) {
    static const unsigned masks[] = {022, 027, 077, 0};
    struct kn_err err = {0};
    struct stat st;
    begin();
    for (size_t i = 0; i < sizeof masks / sizeof masks[0]; i++) {
        mode_t before = umask(masks[i]);
        CHECK_INT(kn_fs_replace(at("f"), "one", 3, false, &err), 0);
        umask(before);
        CHECK(stat(at("f"), &st) == 0);
        CHECK_INT(st.st_mode & 0777, 0666 & ~masks[i]);
    }
    end();
}

TEST(a_file_over_the_maximum_is_refused_and_the_buffer_stays) {
    struct kn_err err = {0};
    struct kn_buf b;
    begin();
    kn_buf_init(&b, 6);
    CHECK_INT(kn_fs_replace(at("f"), "12345", 5, false, &err), 0);
    CHECK_INT(kn_fs_replace(at("g"), "123456", 6, false, &err), 0);
    CHECK_INT(kn_fs_replace(at("h"), "1234567", 7, false, &err), 0);
    CHECK_INT(kn_fs_read(at("g"), &b, &err), 0);
    CHECK_STR(b.data, "123456");
    kn_buf_clear(&b);
    CHECK_INT(kn_buf_appends(&b, "x"), 0);
    CHECK_INT(kn_fs_read(at("h"), &b, &err), KN_ELIMIT);
    CHECK(strstr(err.text, "more than 5 bytes") != NULL);
    CHECK_STR(b.data, "x");
    CHECK_INT(kn_fs_read(at("f"), &b, &err), 0);
    CHECK_STR(b.data, "x12345");
    kn_buf_fini(&b);
    end();
}

TEST(what_is_not_there_or_not_a_file_is_told_with_its_path) {
    struct kn_err err = {0};
    struct kn_buf b;
    begin();
    kn_buf_init(&b, 10);
    CHECK_INT(kn_fs_read(at("none"), &b, &err), KN_ENOENT);
    CHECK(strstr(err.text, "none: open: No such file") != NULL);
    CHECK_INT(kn_fs_read(dir, &b, &err), KN_EIO);
    CHECK_INT(kn_fs_replace(at("none/f"), "", 0, false, &err), KN_ENOENT);
    CHECK_INT(kn_fs_sync_dir(at("none"), &err), KN_ENOENT);
    kn_buf_fini(&b);
    end();
}

/* Refused by every way in which a file is opened, with its path and what it is. */
static void refuse(const char *path, const char *says) {
    struct kn_err err = {0};
    uint8_t digest[KN_SHA256_BYTES];
    struct kn_buf b;
    int fd = -1;
    kn_buf_init(&b, 1u << 20);
    CHECK_INT(kn_fs_read(path, &b, &err), KN_EIO);
    CHECK_MSG(strstr(err.text, path) && strstr(err.text, says), "%s", err.text);
    CHECK_INT(b.len, 0);
    CHECK_INT(kn_fs_open(path, 1u << 20, &fd, NULL, &err), KN_EIO);
    CHECK_INT(fd, -1);
    CHECK(kn_fs_stream(path, &err) == NULL && err.code == KN_EIO);
    CHECK_INT(kn_sha256_file(path, digest, &err), KN_EIO);
    CHECK_MSG(strstr(err.text, path) && strstr(err.text, says), "%s", err.text);
    kn_buf_fini(&b);
}

TEST(what_is_no_regular_file_is_refused_at_once_by_name) {
    begin();
    CHECK(mkfifo(at("fifo"), 0600) == 0); /* nobody writes into it: opening it would block for ever */
    refuse(at("fifo"), "is a FIFO or pipe, not a regular file");
    CHECK(symlink("/dev/zero", at("zero")) == 0); /* reading it would never end */
    refuse(at("zero"), "is a device, not a regular file");
    refuse(dir, "is a folder, not a regular file");
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path, sizeof name.sun_path, "%s/socket", dir);
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(s >= 0 && bind(s, (struct sockaddr *)&name, sizeof name) == 0);
    refuse(at("socket"), "is a socket, not a regular file");
    close(s);
    end();
}

TEST(a_regular_file_is_opened_with_its_size_and_a_maximum) {
    struct kn_err err = {0};
    int fd;
    uint64_t bytes;
    begin();
    CHECK_INT(kn_fs_replace(at("f"), "12345", 5, false, &err), 0);
    CHECK_INT(kn_fs_open(at("f"), 5, &fd, &bytes, &err), 0);
    CHECK_INT(bytes, 5);
    close(fd);
    CHECK_INT(kn_fs_open(at("f"), 4, &fd, &bytes, &err), KN_ELIMIT);
    CHECK_MSG(strstr(err.text, "f: more than 4 bytes"), "%s", err.text);
    FILE *f = kn_fs_stream(at("f"), &err);
    char text[8];
    CHECK(f && fgets(text, sizeof text, f));
    CHECK_STR(text, "12345");
    fclose(f);
    end();
}

TEST(folders_are_made_with_their_parents_and_may_exist) {
    struct kn_err err = {0};
    struct stat st;
    begin();
    CHECK_INT(kn_fs_mkdirs(at("a/b//c/"), 0700, &err), 0);
    CHECK_INT(kn_fs_mkdirs(at("a/b/c"), 0700, &err), 0);
    CHECK(stat(at("a/b/c"), &st) == 0 && (st.st_mode & 0777) == 0700);
    CHECK_INT(kn_fs_replace(at("a/f"), "", 0, true, &err), 0);
    CHECK(kn_fs_mkdirs(at("a/f/g"), 0700, &err) != 0);
    CHECK(strstr(err.text, "a/f: mkdir: Not a directory") != NULL);
    CHECK_INT(kn_fs_mkdirs("", 0700, &err), KN_EINVAL);
    CHECK(kn_fs_exists(at("a/f")) && kn_fs_exists(at("a")) && !kn_fs_exists(at("z")));
    end();
}

TEST(joined_paths_have_one_slash_and_must_fit) {
    char out[8];
    CHECK_INT(kn_fs_join(out, sizeof out, "ab", "cd"), 0);
    CHECK_STR(out, "ab/cd");
    CHECK_INT(kn_fs_join(out, sizeof out, "/", "cd"), 0);
    CHECK_STR(out, "/cd");
    CHECK_INT(kn_fs_join(out, sizeof out, "abc", "def"), 0);
    CHECK_INT(kn_fs_join(out, sizeof out, "abc", "defg"), KN_ELIMIT);
}
