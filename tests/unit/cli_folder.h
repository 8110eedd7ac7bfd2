/* For the tests of an output folder: a temporary folder, tasks with keys, and a farm that is nothing but a
 * folder of objects (the linker puts these two functions in the
 * place of client.c's, which folder.c calls). */
#ifndef KILN_TESTS_UNIT_CLI_FOLDER_H
#define KILN_TESTS_UNIT_CLI_FOLDER_H

#include <ftw.h>
#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "cli/folder/folder.h"
#include "tests/unit/check.h"

#define FOLDER_TASKS_MAX 64

static char trial_dir[256], trial_out[300], trial_objects[300];
static const char *trial_pattern; /* --name-pattern */
static bool trial_replace;
static bool trial_far; /* the farm is on another machine: objects must be fetched */
static struct kn_task trial_tasks[FOLDER_TASKS_MAX];
static kn_digest trial_keys[FOLDER_TASKS_MAX];
static struct kn_model_info trial_model;
static size_t trial_fetches;

const struct kn_welcome *__wrap_client_welcome(const struct client *c);
int __wrap_client_fetch(struct client *c, const struct client_objects *o, struct kn_err *err);

const struct kn_welcome *__wrap_client_welcome(const struct client *c) {
    static struct kn_welcome w;
    (void)c;
    w.objects_dir = trial_far ? "" : trial_objects;
    return &w;
}

static void trial_object_path(const kn_digest sha256, char out[512]) {
    char hex[KN_SHA256_HEX];
    kn_hex(sha256, sizeof(kn_digest), hex);
    snprintf(out, 512, "%s/%.2s/%s.png", trial_objects, hex, hex);
}

int __wrap_client_fetch(struct client *c, const struct client_objects *o, struct kn_err *err) {
    (void)c;
    for (size_t i = o->count; i-- > 0;) { /* in any order */
        char path[512];
        struct kn_buf b;
        trial_object_path(o->digests[i], path);
        kn_buf_init(&b, 1u << 20);
        int rc = kn_fs_read(path, &b, NULL);
        kn_digest now = {0};
        if (rc == KN_OK) kn_sha256(b.data, b.len, now);
        if (rc || memcmp(now, o->digests[i], sizeof now) != 0)
            o->missing(o->ctx, i, "not found");
        else
            rc = o->got(o->ctx, i, b.data, b.len, err);
        kn_buf_fini(&b);
        trial_fetches++;
        if (rc && rc != KN_ENOENT) return rc;
    }
    return KN_OK;
}

static int trial_remove(const char *path, const struct stat *st, int type, struct FTW *at) {
    (void)st;
    (void)type;
    (void)at;
    return remove(path);
}

static inline void trial_end(void) {
    if (trial_dir[0]) nftw(trial_dir, trial_remove, 16, FTW_DEPTH | FTW_PHYS);
    trial_dir[0] = '\0';
}

static inline void trial_begin(void) {
    const char *tmp = getenv("TMPDIR");
    trial_end();
    snprintf(trial_dir, sizeof trial_dir, "%.200s/kiln-folder-XXXXXX", tmp ? tmp : "/tmp");
    CHECK(mkdtemp(trial_dir) != NULL);
    atexit(trial_end);
    snprintf(trial_out, sizeof trial_out, "%s/out", trial_dir);
    snprintf(trial_objects, sizeof trial_objects, "%s/objects", trial_dir);
    CHECK_INT(mkdir(trial_objects, 0777), 0);
    trial_far = false;
    trial_pattern = NULL;
    trial_replace = false;
    trial_fetches = 0;
}

/* Tasks that differ in their seeds, from `first_seed` on. */
static inline void trial_ask(size_t count, uint64_t first_seed) {
    static char words[] = "a red circle", none[] = "";
    memset(&trial_model, 0, sizeof trial_model);
    strcpy(trial_model.name, "tiny");
    memset(trial_model.sha256, 0xab, sizeof trial_model.sha256);
    for (size_t i = 0; i < count; i++) {
        trial_tasks[i] = (struct kn_task){.prompt = words,
                                          .negative = none,
                                          .seed = first_seed + i,
                                          .cfg = 7.3f,
                                          .steps = 20,
                                          .width = 16,
                                          .height = 24,
                                          .sampler = KN_SAMPLER_EULER_A,
                                          .schedule = KN_SCHEDULE_KARRAS,
                                          .set = KN_SET_ALL};
        kn_task_key(&trial_tasks[i], trial_model.sha256, trial_keys[i]);
    }
}

/* A PNG of that format whose pixels come from the seed, with its digests. The caller frees. */
static inline void *trial_png(uint64_t seed, uint32_t width, uint32_t height, uint32_t format, size_t *len,
                              kn_digest pixels) {
    static uint8_t px[64 * 64 * 4];
    uint32_t channels = PNG_IMAGE_SAMPLE_CHANNELS(format);
    for (size_t i = 0; i < (size_t)width * height * channels; i++)
        px[i] = (uint8_t)(kn_hash64(&i, sizeof i, seed));
    png_image im = {.version = PNG_IMAGE_VERSION, .width = width, .height = height, .format = format};
    png_alloc_size_t n = 0;
    CHECK(png_image_write_to_memory(&im, NULL, &n, 0, px, 0, NULL));
    void *out = malloc(n);
    CHECK(out && png_image_write_to_memory(&im, out, &n, 0, px, 0, NULL));
    kn_sha256(px, (size_t)width * height * channels, pixels);
    *len = n;
    return out;
}

static inline void trial_write(const char *path, const void *data, size_t len) {
    FILE *f = fopen(path, "w");
    CHECK(f && fwrite(data, 1, len, f) == len && fclose(f) == 0);
}

/* The farm renders image i: its object is there, and *r says so. */
static inline void trial_render(size_t i, struct kn_result *r) {
    size_t len;
    char path[512];
    *r = (struct kn_result){.index = (uint32_t)i,
                            .attempt = 1,
                            .render_ms = 340,
                            .status = KN_RESULT_DONE,
                            .worker = "worker-0",
                            .backend = "cpu-avx2-3fa1c2",
                            .engine = "kiln 0.1.0",
                            .error = ""};
    void *png = trial_png(trial_tasks[i].seed, trial_tasks[i].width, trial_tasks[i].height, PNG_FORMAT_RGB,
                          &len, r->pixels_sha256);
    kn_sha256(png, len, r->sha256);
    trial_object_path(r->sha256, path);
    char *slash = strrchr(path, '/');
    *slash = '\0';
    mkdir(path, 0777);
    *slash = '/';
    trial_write(path, png, len);
    free(png);
}

static inline int trial_begin_folder(struct folder *o, size_t count, const char *pin_backend,
                                     struct kn_err *err) {
    static struct kn_tasks list;
    list = (struct kn_tasks){.v = trial_tasks, .count = count};
    int rc = folder_choose(trial_out,
                           &(struct folder_ask){.tasks = &list,
                                                .keys = (const kn_digest *)trial_keys,
                                                .count = count,
                                                .models = &trial_model,
                                                .pin_backend = pin_backend,
                                                .name_pattern = trial_pattern,
                                                .replace = trial_replace},
                           o, err);
    strcpy(o->name, "prompts.txt");
    return rc;
}

static inline void trial_open(struct folder *o, size_t count, const char *pin_backend) {
    struct kn_err err = {0};
    CHECK_MSG(trial_begin_folder(o, count, pin_backend, &err) == KN_OK, "%s", err.text);
    CHECK_MSG(folder_describe(o, &err) == KN_OK, "%s", err.text);
}

/* Image i has ended so; done: it is rendered. */
static inline void trial_take(struct folder *o, size_t i, enum kn_result_status status, const char *error) {
    struct kn_err err = {0};
    struct kn_result r;
    uint32_t index = (uint32_t)i;
    size_t lost = 0;
    trial_render(i, &r);
    if (status != KN_RESULT_DONE)
        r = (struct kn_result){.index = index,
                               .attempt = 3,
                               .status = status,
                               .worker = "",
                               .backend = "",
                               .engine = "",
                               .error = error};
    CHECK_MSG(folder_take(o, NULL, &r, &index, 1, &lost, &err) == KN_OK, "%s", err.text);
    CHECK_INT(lost, 0);
}

static inline void trial_close(struct folder *o) {
    struct kn_err err = {0};
    o->finished = true;
    CHECK_MSG(folder_flush(o, true, &err) == KN_OK, "%s", err.text);
    folder_close(o);
}

/* A finished folder of `count` images, the last of them failed when `failed`. */
static inline void trial_finished(size_t count, bool failed) {
    static struct folder o;
    trial_begin();
    trial_ask(count, 7);
    trial_open(&o, count, NULL);
    for (size_t i = 0; i < count; i++)
        trial_take(&o, i, failed && i + 1 == count ? KN_RESULT_FAILED : KN_RESULT_DONE, "out of luck");
    trial_close(&o);
}

static inline void trial_path(const char *name, char out[512]) {
    snprintf(out, 512, "%s/%s", trial_out, name);
}

/* A file of the folder as text; the caller frees. */
static inline char *trial_read(const char *name) {
    char path[512];
    struct kn_buf b;
    trial_path(name, path);
    kn_buf_init(&b, 64u << 20);
    CHECK_MSG(kn_fs_read(path, &b, NULL) == KN_OK, "%s", name);
    return b.data ? b.data : calloc(1, 1);
}

#endif
