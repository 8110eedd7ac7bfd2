/* coordinator/objects.h: no call that changes the folder of objects does harm, however late it comes. A
 * coordinator that was deposed without knowing it is stopped right before such a call; another one works on
 * the same folder; then the first goes on. What records name must be there afterwards, whole. */
#include <pthread.h>
#include <semaphore.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "coordinator/objects.h"
#include "tests/unit/check.h"

struct fixture {
    char dir[64];
    struct objects *old, *now; /* two coordinators, of the terms 1 and 2 */
};

static void setup(struct fixture *f) {
    struct kn_err err = {0};
    snprintf(f->dir, sizeof f->dir, "/tmp/kiln-trash-XXXXXX");
    CHECK(mkdtemp(f->dir) != NULL);
    CHECK_MSG(objects_open(f->dir, 1, &f->old, &err) == 0, "%s", err.text);
    CHECK_MSG(objects_open(f->dir, 2, &f->now, &err) == 0, "%s", err.text);
}

static void teardown(struct fixture *f) {
    char command[128];
    objects_close(f->old);
    objects_close(f->now);
    snprintf(command, sizeof command, "rm -rf %s", f->dir);
    CHECK_INT(system(command), 0);
}

/* ---- a thread that is stopped at a switch */

static const char *stop_call;
static sem_t stopped, go_on;
static _Thread_local bool is_old; /* only the deposed one's thread is stopped */
static bool bad;                  /* it met an error */

static void on_switch(const char *call) {
    if (!is_old || !stop_call || strcmp(call, stop_call) != 0) return;
    stop_call = NULL;
    sem_post(&stopped);
    sem_wait(&go_on);
}

struct late {
    pthread_t thread;
    void (*fn)(struct fixture *f, const uint8_t *sha256);
    struct fixture *f;
    const uint8_t *sha256;
};

static void *run_late(void *ctx) {
    struct late *l = ctx;
    is_old = true;
    l->fn(l->f, l->sha256);
    return NULL;
}

/* Lets the old coordinator begin with `fn`, up to that call. */
static void begin_late(struct late *l, const char *call, void (*fn)(struct fixture *, const uint8_t *),
                       struct fixture *f, const uint8_t *sha256) {
    *l = (struct late){.fn = fn, .f = f, .sha256 = sha256};
    CHECK_INT(sem_init(&stopped, 0, 0), 0);
    CHECK_INT(sem_init(&go_on, 0, 0), 0);
    stop_call = call;
    objects_switch = on_switch;
    CHECK_INT(pthread_create(&l->thread, NULL, run_late, l), 0);
    struct timespec end;
    CHECK_INT(clock_gettime(CLOCK_REALTIME, &end), 0);
    end.tv_sec += 20;
    CHECK_INT(sem_timedwait(&stopped, &end), 0);
}

static void end_late(struct late *l) {
    sem_post(&go_on);
    CHECK_INT(pthread_join(l->thread, NULL), 0);
    objects_switch = NULL;
    CHECK(!bad);
}

/* ---- what a coordinator does */

static const char bytes[] = "the picture's bytes";

static void put(struct objects *o, const uint8_t *sha256) {
    char name[OBJECTS_NAME_MAX];
    const char *what;
    if (objects_has(o, sha256, bytes, sizeof bytes)) return;
    CHECK_INT(objects_write(o, bytes, sizeof bytes, true, name, &what), 0);
    CHECK_INT(objects_arrive(o, name, sha256, bytes, sizeof bytes), 0);
}

static void put_of_old(struct fixture *f, const uint8_t *sha256) {
    char name[OBJECTS_NAME_MAX];
    const char *what;
    if (objects_has(f->old, sha256, bytes, sizeof bytes) ||
        objects_write(f->old, bytes, sizeof bytes, true, name, &what) != 0)
        return;
    int rc = objects_arrive(f->old, name, sha256, bytes, sizeof bytes);
    (void)rc; /* its file may have been taken from it */
}

static void trash_of_old(struct fixture *f, const uint8_t *sha256) {
    char name[OBJECTS_NAME_MAX];
    int rc = objects_trash(f->old, sha256, name);
    bad = rc != 0 && rc != KN_ENOENT;
}

static void restore_of_old(struct fixture *f, const uint8_t *sha256) {
    int rc = objects_restore(f->old, sha256);
    bad = rc != 0 && rc != KN_ENOENT;
}

static char listed[OBJECTS_NAME_MAX]; /* what the old one had seen in the trash, while it led */

static void delete_of_old(struct fixture *f, const uint8_t *sha256) {
    bad = objects_delete(f->old, sha256, listed) != 0;
}

static void strays_of_old(struct fixture *f, const uint8_t *sha256) {
    (void)sha256;
    objects_remove_strays(f->old);
}

/* As everybody who misses an object reads it. */
static void check_there(struct fixture *f, const uint8_t *sha256) {
    void *data;
    size_t len;
    bool restored;
    CHECK_INT(objects_read(f->now, sha256, &data, &len, &restored), 0);
    CHECK_INT((int)len, (int)sizeof bytes);
    CHECK_MEM(data, bytes, sizeof bytes);
    free(data);
}

static bool count_one(void *ctx, const struct objects_entry *e) {
    (void)e;
    ++*(int *)ctx;
    return true;
}

static int in_trash(struct fixture *f, const uint8_t *sha256) {
    int n = 0;
    objects_each(f->now, sha256[0], true, count_one, &n, NULL);
    return n;
}

static void digest(uint8_t sha256[KN_SHA256_BYTES]) {
    kn_sha256(bytes, sizeof bytes, sha256);
}

/* ---- the promises */

TEST(a_late_move_to_the_trash_loses_nothing) {
    struct fixture f;
    struct late l;
    uint8_t d[KN_SHA256_BYTES];
    setup(&f);
    digest(d);
    put(f.old, d);
    begin_late(&l, "trash", trash_of_old, &f, d);
    put(f.now, d); /* the same prompt, committed by the other: the object is there */
    end_late(&l);
    CHECK_INT(in_trash(&f, d), 1); /* and now it is not */
    check_there(&f, d);
    CHECK_INT(in_trash(&f, d), 0);
    teardown(&f);
}

TEST(a_late_deletion_in_the_trash_hits_no_object_that_came_there_since) {
    struct fixture f;
    struct late l;
    char name[OBJECTS_NAME_MAX];
    uint8_t d[KN_SHA256_BYTES];
    setup(&f);
    digest(d);
    put(f.old, d);
    CHECK_INT(objects_trash(f.old, d, listed), 0);
    begin_late(&l, "delete", delete_of_old, &f, d); /* nothing named it, while the old one led */
    put(f.now, d);
    CHECK_INT(objects_trash(f.old, d, name), 0); /* a third late call takes it away */
    end_late(&l);
    check_there(&f, d);
    teardown(&f);
}

TEST(a_late_deletion_after_the_object_was_moved_back_hits_nothing) {
    struct fixture f;
    struct late l;
    uint8_t d[KN_SHA256_BYTES];
    setup(&f);
    digest(d);
    put(f.old, d);
    CHECK_INT(objects_trash(f.old, d, listed), 0);
    begin_late(&l, "delete", delete_of_old, &f, d);
    check_there(&f, d); /* moves it back */
    end_late(&l);
    check_there(&f, d);
    teardown(&f);
}

TEST(a_late_arrival_brings_the_same_bytes) {
    static const char *const calls[] = {"create", "arrive"};
    for (size_t i = 0; i < 2; i++) {
        struct fixture f;
        struct late l;
        uint8_t d[KN_SHA256_BYTES];
        setup(&f);
        digest(d);
        begin_late(&l, calls[i], put_of_old, &f, d);
        objects_remove_strays(f.now); /* as the other one does when it starts */
        put(f.now, d);
        end_late(&l);
        check_there(&f, d);
        teardown(&f);
    }
}

TEST(the_files_of_two_coordinators_have_different_names_while_they_are_written) {
    struct fixture f;
    struct late l;
    char name[OBJECTS_NAME_MAX];
    const char *what;
    uint8_t d[KN_SHA256_BYTES], other[KN_SHA256_BYTES];
    setup(&f);
    digest(d);
    kn_sha256("other", 5, other);
    begin_late(&l, "arrive", put_of_old, &f, d);
    objects_remove_strays(f.now); /* what the old one was about to rename is gone */
    CHECK_INT(objects_write(f.now, "other", 5, true, name, &what), 0);
    end_late(&l); /* it does not take the new one's file for its own */
    CHECK_INT(objects_arrive(f.now, name, other, "other", 5), 0);
    CHECK(objects_has(f.now, other, "other", 5));
    CHECK(!objects_has(f.now, d, bytes, sizeof bytes));
    teardown(&f);
}

TEST(a_late_removal_of_strays_leaves_the_files_of_a_later_term) {
    struct fixture f;
    struct late l;
    char name[OBJECTS_NAME_MAX], path[OBJECTS_NAME_MAX + 80];
    const char *what;
    uint8_t d[KN_SHA256_BYTES];
    setup(&f);
    digest(d);
    snprintf(path, sizeof path, "%s/incoming/7", f.dir); /* of a program before terms were in the names */
    FILE *x = fopen(path, "w");
    CHECK(x != NULL);
    fclose(x);
    begin_late(&l, "stray", strays_of_old, &f, d);
    CHECK_INT(objects_write(f.now, bytes, sizeof bytes, true, name, &what), 0);
    end_late(&l);
    CHECK(access(path, F_OK) != 0);
    CHECK_INT((int)objects_remove_strays(f.old), 0);
    CHECK_INT(objects_arrive(f.now, name, d, bytes, sizeof bytes), 0);
    check_there(&f, d);
    teardown(&f);
}

TEST(a_late_move_back_replaces_nothing) {
    struct fixture f;
    struct late l;
    uint8_t d[KN_SHA256_BYTES];
    char path[KN_PATH_MAX];
    struct stat before, after;
    setup(&f);
    digest(d);
    put(f.old, d);
    CHECK_INT(objects_trash(f.old, d, listed), 0);
    begin_late(&l, "restore", restore_of_old, &f, d);
    put(f.now, d);
    objects_path(f.dir, d, path);
    CHECK_INT(stat(path, &before), 0);
    end_late(&l);
    CHECK_INT(stat(path, &after), 0);
    CHECK(before.st_ino == after.st_ino);
    check_there(&f, d);
    teardown(&f);
}

TEST(bytes_that_were_kept_aside_late_leave_the_object_where_it_is) {
    struct fixture f;
    struct late l;
    uint8_t d[KN_SHA256_BYTES];
    char path[KN_PATH_MAX];
    setup(&f);
    digest(d);
    put(f.old, d);
    objects_path(f.dir, d, path);
    CHECK_INT(unlink(path), 0);
    FILE *x = fopen(path, "w");
    CHECK(x != NULL);
    fputs("damaged", x);
    fclose(x);
    begin_late(&l, "aside", put_of_old, &f, d);
    put(f.now, d); /* the other one has repaired it meanwhile */
    end_late(&l);
    check_there(&f, d);
    teardown(&f);
}

TEST(damaged_bytes_in_the_trash_are_not_moved_back) {
    struct fixture f;
    uint8_t d[KN_SHA256_BYTES];
    char path[OBJECTS_NAME_MAX + 80], hex[KN_SHA256_HEX];
    setup(&f);
    digest(d);
    kn_hex(d, sizeof d, hex);
    put(f.old, d);
    CHECK_INT(objects_trash(f.old, d, listed), 0);
    snprintf(path, sizeof path, "%s/trash/%.2s/%s", f.dir, hex, listed);
    CHECK_INT(unlink(path), 0);
    snprintf(path, sizeof path, "%s/trash/%.2s/1-9-%s", f.dir, hex, hex);
    FILE *x = fopen(path, "w");
    CHECK(x != NULL);
    fputs("not these", x);
    fclose(x);
    CHECK_INT(objects_restore(f.now, d), KN_ECORRUPT);
    put(f.old, d);
    CHECK_INT(objects_trash(f.old, d, listed), 0);
    CHECK_INT(objects_restore(f.now, d), 0); /* the other one is found behind it */
    check_there(&f, d);
    teardown(&f);
}

TEST(no_name_in_the_trash_is_given_twice) {
    struct fixture f;
    uint8_t d[KN_SHA256_BYTES];
    char a[OBJECTS_NAME_MAX], b[OBJECTS_NAME_MAX], c[OBJECTS_NAME_MAX];
    setup(&f);
    digest(d);
    put(f.old, d);
    CHECK_INT(objects_trash(f.old, d, a), 0);
    put(f.now, d);
    CHECK_INT(objects_trash(f.old, d, b), 0);
    put(f.now, d);
    CHECK_INT(objects_trash(f.now, d, c), 0);
    CHECK(strcmp(a, b) != 0 && strcmp(b, c) != 0 && strcmp(a, c) != 0);
    CHECK_INT(in_trash(&f, d), 3);
    teardown(&f);
}
