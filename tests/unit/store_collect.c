/* coordinator/collect.h: bytes become files that are named by their digest, whole or not at all. */
#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coordinator/collect.h"
#include "tests/unit/check.h"

struct fixture {
    uv_loop_t loop;
    struct collect *c;
    char dir[64];
    uint64_t term;
    int done, failed, last;
};

static void open_collect(struct fixture *f) {
    struct kn_err err = {0};
    CHECK_MSG(collect_create(&f->loop, f->dir, ++f->term, &f->c, &err) == 0, "%s", err.text);
}

static void setup(struct fixture *f) {
    *f = (struct fixture){0};
    snprintf(f->dir, sizeof f->dir, "/tmp/kiln-collect-XXXXXX");
    CHECK(mkdtemp(f->dir) != NULL);
    CHECK_INT(uv_loop_init(&f->loop), 0);
    open_collect(f);
}

static void teardown(struct fixture *f) {
    char command[128];
    collect_destroy(f->c);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    CHECK_INT(uv_loop_close(&f->loop), 0);
    snprintf(command, sizeof command, "rm -rf %s", f->dir);
    CHECK_INT(system(command), 0);
}

static void free_data(void *data, void *hint) {
    (void)hint;
    free(data);
}

static struct kn_blob blob_of(const char *text, uint8_t sha256[KN_SHA256_BYTES]) {
    kn_sha256(text, strlen(text), sha256);
    return (struct kn_blob){strdup(text), strlen(text), free_data, NULL};
}

static void on_done(void *ctx, int code, const char *why) {
    struct fixture *f = ctx;
    (void)why;
    if (code == 0)
        f->done++;
    else
        f->failed++;
    f->last = code;
}

static void put(struct fixture *f, const char *text, uint8_t sha256[KN_SHA256_BYTES]) {
    struct kn_blob b = blob_of(text, sha256);
    CHECK_INT(collect_put(f->c, sha256, &b, NULL, on_done, f), 0);
    CHECK(b.data == NULL);
}

/* Until nothing is under way. */
static void settle(struct fixture *f) {
    for (int i = 0; i < 100000 && collect_count(f->c) > 0; i++) uv_run(&f->loop, UV_RUN_ONCE);
    CHECK_INT((int)collect_count(f->c), 0);
    CHECK_INT((int)collect_bytes(f->c), 0);
}

static void check_file(struct fixture *f, const uint8_t sha256[KN_SHA256_BYTES], const char *text) {
    char path[KN_PATH_MAX];
    struct kn_buf b;
    kn_buf_init(&b, 1u << 20);
    objects_path(f->dir, sha256, path);
    CHECK_INT(kn_fs_read(path, &b, NULL), 0);
    CHECK_STR(b.data, text);
    kn_buf_fini(&b);
}

static bool is_there(struct fixture *f, const uint8_t sha256[KN_SHA256_BYTES]) {
    char path[KN_PATH_MAX];
    objects_path(f->dir, sha256, path);
    return kn_fs_exists(path);
}

static int incoming(struct fixture *f) {
    char path[80];
    int n = 0;
    snprintf(path, sizeof path, "%s/incoming", f->dir);
    DIR *d = opendir(path);
    CHECK(d != NULL);
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

TEST(an_image_becomes_a_file_named_by_its_digest) {
    struct fixture f;
    uint8_t d[KN_SHA256_BYTES];
    char hex[KN_SHA256_HEX], want[KN_PATH_MAX], path[KN_PATH_MAX];
    setup(&f);
    put(&f, "bytes", d);
    settle(&f);
    CHECK_INT(f.done, 1);
    check_file(&f, d, "bytes");
    kn_hex(d, sizeof d, hex);
    snprintf(want, sizeof want, "%s/%.2s/%s.png", f.dir, hex, hex);
    objects_path(f.dir, d, path);
    CHECK_STR(path, want);
    CHECK_INT(incoming(&f), 0);
    teardown(&f);
}

TEST(an_object_is_read_only) {
    struct fixture f;
    uint8_t d[KN_SHA256_BYTES];
    char path[KN_PATH_MAX];
    struct stat st;
    setup(&f);
    mode_t before = umask(027);
    put(&f, "bytes", d);
    settle(&f);
    umask(before);
    objects_path(f.dir, d, path);
    CHECK_INT(stat(path, &st), 0);
    CHECK_INT(st.st_mode & 0777, 0440);
    teardown(&f);
}

TEST(bytes_of_another_digest_are_refused) {
    struct fixture f;
    uint8_t d[KN_SHA256_BYTES];
    setup(&f);
    struct kn_blob b = blob_of("bytes", d);
    d[0] ^= 1;
    CHECK_INT(collect_put(f.c, d, &b, NULL, on_done, &f), 0);
    settle(&f);
    CHECK_INT(f.failed, 1);
    CHECK_INT(f.last, KN_ECORRUPT);
    CHECK(!is_there(&f, d));
    CHECK_INT(incoming(&f), 0);
    teardown(&f);
}

TEST(a_duplicate_is_fine) {
    struct fixture f;
    uint8_t d[KN_SHA256_BYTES];
    setup(&f);
    put(&f, "bytes", d);
    settle(&f);
    put(&f, "bytes", d);
    put(&f, "bytes", d);
    settle(&f);
    CHECK_INT(f.done, 3);
    check_file(&f, d, "bytes");
    CHECK_INT(incoming(&f), 0);
    teardown(&f);
}

static void damage(struct fixture *f, const uint8_t sha256[KN_SHA256_BYTES], const char *text) {
    char path[KN_PATH_MAX];
    objects_path(f->dir, sha256, path);
    CHECK_INT(chmod(path, 0644), 0);
    FILE *x = fopen(path, "w");
    CHECK(x != NULL);
    fputs(text, x);
    fclose(x);
}

TEST(a_damaged_object_is_replaced_and_kept_aside) {
    struct fixture f;
    uint8_t d[KN_SHA256_BYTES];
    char path[KN_PATH_MAX], found[KN_PATH_MAX] = "";
    struct kn_buf b;
    setup(&f);
    put(&f, "bytes", d);
    settle(&f);
    damage(&f, d, "bytez");
    put(&f, "bytes", d);
    settle(&f);
    check_file(&f, d, "bytes");
    snprintf(path, sizeof path, "%s/damaged", f.dir);
    DIR *dir = opendir(path);
    CHECK(dir != NULL);
    for (struct dirent *e; (e = readdir(dir));)
        if (e->d_name[0] != '.') snprintf(found, sizeof found, "%s/damaged/%s", f.dir, e->d_name);
    closedir(dir);
    kn_buf_init(&b, 1u << 20);
    CHECK_INT(kn_fs_read(found, &b, NULL), 0);
    CHECK_STR(b.data, "bytez");
    kn_buf_fini(&b);
    teardown(&f);
}

TEST(many_at_once_are_all_kept) {
    struct fixture f;
    static uint8_t d[2000][KN_SHA256_BYTES];
    char text[32];
    setup(&f);
    for (int i = 0; i < 2000; i++) {
        snprintf(text, sizeof text, "picture %d", i);
        put(&f, text, d[i]);
    }
    settle(&f);
    CHECK_INT(f.done, 2000);
    for (int i = 0; i < 2000; i++) {
        snprintf(text, sizeof text, "picture %d", i);
        check_file(&f, d[i], text);
    }
    teardown(&f);
}

TEST(strays_of_a_crash_are_removed) {
    struct fixture f;
    char path[96];
    setup(&f);
    snprintf(path, sizeof path, "%s/incoming/17", f.dir);
    FILE *x = fopen(path, "w");
    CHECK(x != NULL);
    fputs("half a pic", x);
    fclose(x);
    collect_destroy(f.c);
    uv_run(&f.loop, UV_RUN_DEFAULT);
    CHECK_INT(incoming(&f), 1);
    open_collect(&f);
    CHECK_INT(incoming(&f), 0);
    teardown(&f);
}

TEST(a_disk_that_refuses_is_an_error_and_leaves_nothing) {
    struct fixture f;
    uint8_t d[KN_SHA256_BYTES];
    char path[KN_PATH_MAX];
    setup(&f);
    kn_sha256("bytes", 5, d);
    snprintf(path, sizeof path, "%s/%02x", f.dir, d[0]);
    CHECK_INT(rmdir(path), 0); /* its folder is not there */
    put(&f, "bytes", d);
    settle(&f);
    CHECK_INT(f.last, KN_EIO);
    CHECK_INT(incoming(&f), 0);
    teardown(&f);
}

static void on_got(void *ctx, int code, void *data, size_t len) {
    struct fixture *f = ctx;
    f->last = code;
    f->done = (int)len;
    if (code == 0) CHECK_MEM(data, "bytes", 5);
    free(data);
}

TEST(an_object_is_read_or_said_to_be_missing_or_damaged) {
    struct fixture f;
    uint8_t d[KN_SHA256_BYTES];
    setup(&f);
    put(&f, "bytes", d);
    settle(&f);
    f.last = -99;
    CHECK_INT(collect_get(f.c, d, on_got, &f), 0);
    while (f.last == -99) uv_run(&f.loop, UV_RUN_ONCE);
    CHECK_INT(f.last, 0);
    CHECK_INT(f.done, 5);
    damage(&f, d, "bytez");
    f.last = -99;
    CHECK_INT(collect_get(f.c, d, on_got, &f), 0);
    while (f.last == -99) uv_run(&f.loop, UV_RUN_ONCE);
    CHECK_INT(f.last, KN_ECORRUPT);
    d[5] ^= 1;
    f.last = -99;
    CHECK_INT(collect_get(f.c, d, on_got, &f), 0);
    while (f.last == -99) uv_run(&f.loop, UV_RUN_ONCE);
    CHECK_INT(f.last, KN_ENOENT);
    teardown(&f);
}

static void on_looked(void *ctx, const struct collect_look *v, size_t count) {
    struct fixture *f = ctx;
    for (size_t i = 0; i < count; i++) f->last = f->last * 1000 - v[i].code;
    f->done = (int)count;
}

static int look(struct fixture *f, uint8_t d[3][KN_SHA256_BYTES], bool whole) {
    struct collect_look *v = calloc(3, sizeof *v);
    CHECK(v != NULL);
    for (uint32_t i = 0; i < 3; i++) memcpy(v[i].sha256, d[i], sizeof v[i].sha256);
    f->last = f->done = 0;
    CHECK_INT(collect_look(f->c, v, 3, whole, on_looked, f), 0);
    while (f->done == 0) uv_run(&f->loop, UV_RUN_ONCE);
    return f->last;
}

TEST(lost_and_damaged_objects_are_found_among_the_others) {
    struct fixture f;
    uint8_t d[3][KN_SHA256_BYTES];
    char path[KN_PATH_MAX];
    setup(&f);
    put(&f, "bytes", d[0]);
    put(&f, "other", d[1]);
    put(&f, "third", d[2]);
    settle(&f);
    CHECK_INT(look(&f, d, true), 0);
    objects_path(f.dir, d[0], path);
    CHECK_INT(unlink(path), 0);
    damage(&f, d[1], "otheR");
    CHECK_INT(look(&f, d, true), (-KN_ENOENT * 1000 - KN_ECORRUPT) * 1000);
    CHECK_INT(look(&f, d, false), -KN_ENOENT * 1000000); /* a digest is not compared then */
    damage(&f, d[1], "");
    CHECK_INT(look(&f, d, false), (-KN_ENOENT * 1000 - KN_ECORRUPT) * 1000);
    teardown(&f);
}
