/* See verify.h. Reading the manifest is one thread's work and cheap; reading and decoding the pictures is
 * shared out: each thread takes the next line that has a picture, and writes what it found into that line's
 * place, so that the report has the manifest's order whatever the threads did. */
#include "cli/folder/verify.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/map.h"
#include "base/picture.h"
#include "cli/cli.h"
#include "cli/folder/images.h"
#include "cli/folder/manifest.h"
#include "cli/folder/names.h"
#include "cli/text.h"

#define THREADS_MAX 32

struct audit {
    struct verify_report *r;
    struct manifest_line *lines; /* owns; those that could be read */
    size_t count, cap;
    uint32_t *line_of; /* owns; image -> line number, 0: none */
    kn_digest *models; /* owns; batch.json's */
    size_t model_count;
    /* while the pictures are read */
    atomic_size_t next, finished;
    atomic_uint_fast64_t bytes;
    char **found; /* owns; a line each: what is wrong with its picture, or NULL */
};

int verify_fault(struct verify_report *r, const char *file, uint32_t line, const char *fmt, ...) {
    if (r->fault_count == r->fault_cap) {
        size_t cap = r->fault_cap ? r->fault_cap * 2 : 16;
        struct verify_fault *v = realloc(r->faults, cap * sizeof *v);
        if (!v) return KN_ENOMEM;
        r->faults = v;
        r->fault_cap = cap;
    }
    struct verify_fault *f = &r->faults[r->fault_count];
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&f->text, fmt, ap);
    va_end(ap);
    if (n < 0) return KN_ENOMEM;
    f->file = strdup(file);
    if (!f->file) {
        free(f->text);
        return KN_ENOMEM;
    }
    f->line = line;
    r->fault_count++;
    return KN_OK;
}

void verify_report_fini(struct verify_report *r) {
    for (size_t i = 0; i < r->fault_count; i++) {
        free(r->faults[i].file);
        free(r->faults[i].text);
    }
    free(r->faults);
    r->faults = NULL;
    r->fault_count = r->fault_cap = 0;
}

/* ---- batch.json ---- */

static int read_batch(struct audit *a, struct kn_err *err) {
    char path[KN_PATH_MAX];
    struct kn_buf b;
    kn_buf_init(&b, 8u << 20);
    int rc = kn_fs_join(path, sizeof path, a->r->dir, "batch.json");
    if (rc == KN_OK) rc = kn_fs_read(path, &b, err);
    if (rc) {
        kn_buf_fini(&b);
        return verify_fault(a->r, "batch.json", 0, "%s", rc == KN_ENOENT ? "is not there" : "cannot be read");
    }
    json_object *v = manifest_parse(b.data ? b.data : "", b.len, 16), *count, *models;
    kn_buf_fini(&b);
    if (!json_object_is_type(v, json_type_object)) {
        rc = verify_fault(a->r, "batch.json", 0, "is not a JSON object");
        goto out;
    }
    if (!json_object_object_get_ex(v, "count", &count) || !json_object_is_type(count, json_type_int) ||
        json_object_get_int64(count) < 0 || json_object_get_int64(count) > KN_TASKS_PER_BATCH_MAX) {
        rc = verify_fault(a->r, "batch.json", 0, "count: is not a number of images");
        goto out;
    }
    a->r->count = (uint64_t)json_object_get_int64(count);
    a->r->has_count = true;
    if (!json_object_object_get_ex(v, "models", &models) || !json_object_is_type(models, json_type_array) ||
        json_object_array_length(models) > KN_MODELS_PER_BATCH_MAX) {
        rc = verify_fault(a->r, "batch.json", 0, "models: is not a list of models");
        goto out;
    }
    size_t n = json_object_array_length(models);
    a->models = calloc(n + 1, sizeof *a->models);
    if (!a->models) {
        rc = KN_ENOMEM;
        goto out;
    }
    for (size_t i = 0; rc == KN_OK && i < n; i++) {
        json_object *m = json_object_array_get_idx(models, i), *hash = NULL;
        if (json_object_is_type(m, json_type_object)) json_object_object_get_ex(m, "sha256", &hash);
        if (json_object_is_type(hash, json_type_string) &&
            kn_unhex(json_object_get_string(hash), a->models[a->model_count], sizeof(kn_digest)) == KN_OK)
            a->model_count++;
        else
            rc = verify_fault(a->r, "batch.json", 0, "models: entry %zu has no sha256", i + 1);
    }
out:
    json_object_put(v);
    return rc;
}

/* ---- manifest.jsonl ---- */

static int keep_line(struct audit *a, const struct manifest_line *l) {
    if (a->count == a->cap) {
        size_t cap = a->cap ? a->cap * 2 : 1024;
        struct manifest_line *v = realloc(a->lines, cap * sizeof *v);
        if (!v) return KN_ENOMEM;
        a->lines = v;
        a->cap = cap;
    }
    a->lines[a->count++] = *l;
    return KN_OK;
}

/* A line that could be read, against batch.json and the lines before it. l->number is set when its picture is
 * to be looked at. */
static int check_against(struct audit *a, struct manifest_line *l, uint32_t number, int64_t *last) {
    struct verify_report *r = a->r;
    if (r->has_count && l->index >= r->count)
        return verify_fault(r, "manifest.jsonl", number, "index: %u, but batch.json counts %llu images",
                            l->index, (unsigned long long)r->count);
    if (a->line_of[l->index])
        return verify_fault(r, "manifest.jsonl", number, "index: %u again, line %u has it", l->index,
                            a->line_of[l->index]);
    a->line_of[l->index] = number;
    int rc = KN_OK;
    if (l->index < *last)
        rc = verify_fault(r, "manifest.jsonl", number, "index: %u comes after %lld", l->index,
                          (long long)*last);
    else
        *last = l->index;
    if (rc) return rc;
    bool known = a->model_count == 0;
    for (size_t i = 0; !known && i < a->model_count; i++)
        known = memcmp(a->models[i], l->model_sha256, sizeof(kn_digest)) == 0;
    if (!known)
        rc = verify_fault(r, "manifest.jsonl", number, "model_sha256: is none of batch.json's models");
    if (rc == KN_OK && memcmp(l->key, l->key_computed, sizeof(kn_digest)) != 0)
        rc = verify_fault(r, "manifest.jsonl", number, "key: is not that of this line's settings");
    if (rc) return rc;
    r->done += l->status == KN_RESULT_DONE;
    r->failed += l->status == KN_RESULT_FAILED;
    r->cancelled += l->status == KN_RESULT_CANCELLED;
    l->number = number;
    return KN_OK;
}

/* Checks what one line says by itself and against the lines before it. */
static int check_line(struct audit *a, const char *text, size_t len, uint32_t number, int64_t *last) {
    struct kn_err err = {0};
    struct manifest_line l;
    int rc = manifest_read(text, len, &l, &err);
    if (rc == KN_OK)
        rc = check_against(a, &l, number, last);
    else if (rc != KN_ENOMEM)
        rc = verify_fault(a->r, "manifest.jsonl", number, "%s", err.text);
    if (rc == KN_OK && l.number) rc = keep_line(a, &l);
    if (rc || !l.number) free(l.file); /* else the audit owns it */
    return rc;
}

static int missing_lines(struct audit *a) {
    int rc = KN_OK;
    for (uint64_t i = 0; rc == KN_OK && i < a->r->count; i++) {
        if (a->line_of[i]) continue;
        uint64_t last = i;
        while (last + 1 < a->r->count && !a->line_of[last + 1]) last++;
        if (last == i)
            rc = verify_fault(a->r, "manifest.jsonl", 0, "image %llu has no line", (unsigned long long)i);
        else
            rc = verify_fault(a->r, "manifest.jsonl", 0, "images %llu to %llu have no line",
                              (unsigned long long)i, (unsigned long long)last);
        i = last;
    }
    return rc;
}

static int read_manifest(struct audit *a) {
    char path[KN_PATH_MAX];
    int rc = kn_fs_join(path, sizeof path, a->r->dir, "manifest.jsonl");
    if (rc) return rc;
    struct kn_err err = {0};
    FILE *f = kn_fs_stream(path, &err);
    if (!f)
        return verify_fault(a->r, "manifest.jsonl", 0, "%s",
                            err.code == KN_ENOENT ? "is not there" : err.text);
    char *line = malloc(MANIFEST_LINE_MAX);
    rc = line ? KN_OK : KN_ENOMEM;
    int64_t last = -1;
    size_t len;
    bool ended = true;
    for (uint32_t number = 1; rc == KN_OK; number++) {
        int got = manifest_next(f, line, &len, &ended);
        if (got == 0) break;
        if (number > KN_TASKS_PER_BATCH_MAX) {
            rc = verify_fault(a->r, "manifest.jsonl", number, "more lines than a batch can have images");
            break;
        }
        if (got == KN_ELIMIT)
            rc = verify_fault(a->r, "manifest.jsonl", number, "is longer than %u bytes", MANIFEST_LINE_MAX);
        else if (got < 0)
            rc = verify_fault(a->r, "manifest.jsonl", number, "cannot be read: %s", strerror(errno));
        else
            rc = check_line(a, line, len, number, &last);
        if (got < 0 && got != KN_ELIMIT) break;
        if (rc == KN_OK && !ended)
            rc = verify_fault(a->r, "manifest.jsonl", number, "has no newline at its end: the file was cut");
    }
    free(line);
    fclose(f);
    return rc ? rc : missing_lines(a);
}

/* ---- pictures ---- */

/* Stands in for words that found no room: the fault itself must not get lost. */
static char no_words[] = "is not right; there was no memory to say how";

static void words_free(char *w) {
    if (w != no_words) free(w);
}

/* For words_free(); never NULL. */
KN_PRINTF(1, 2) static char *words(const char *fmt, ...) {
    char *out = NULL;
    va_list ap;
    va_start(ap, fmt);
    if (vasprintf(&out, fmt, ap) < 0) out = no_words;
    va_end(ap);
    return out;
}

/* Says what is wrong with bytes that should be a line's picture; NULL: nothing. */
static char *check_bytes(const struct manifest_line *l, const void *data, size_t len) {
    kn_digest bytes_sha, pixels_sha;
    uint32_t width = 0, height = 0;
    struct kn_err err = {0};
    kn_sha256(data, len, bytes_sha);
    bool same = memcmp(bytes_sha, l->sha256, sizeof bytes_sha) == 0;
    if (kn_picture_digest(data, len, pixels_sha, &width, &height, &err)) {
        if (same) return words("does not decode: %s", err.text);
        return words("has another SHA-256 than its line says, and does not decode: %s", err.text);
    }
    bool same_pixels = memcmp(pixels_sha, l->pixels_sha256, sizeof pixels_sha) == 0;
    if (!same)
        return words("has another SHA-256 than its line says; its pixels are %s",
                     same_pixels ? "the same" : "others");
    if (width != l->width || height != l->height)
        return words("is %ux%u, its line says %ux%u", width, height, l->width, l->height);
    if (!same_pixels) return words("has another pixels_sha256 than its line says");
    return NULL;
}

/* `file` is the thread's buffer. */
static char *check_picture(const struct verify_report *r, const struct manifest_line *l,
                           struct kn_buf *file) {
    char path[KN_PATH_MAX];
    struct kn_err err = {0};
    struct stat st;
    kn_buf_clear(file);
    if (kn_fs_join(path, sizeof path, r->dir, l->file)) return words("the path is too long");
    if (lstat(path, &st)) return words(errno == ENOENT ? "is not there" : "%s", strerror(errno));
    if (!S_ISREG(st.st_mode)) return words("is not a regular file");
    if (kn_fs_read(path, file, &err)) return words("cannot be read: %s", err.text);
    return check_bytes(l, file->data ? file->data : "", file->len);
}

static void *work(void *arg) {
    struct audit *a = arg;
    struct kn_buf file;
    size_t i;
    kn_buf_init(&file, KN_IMAGE_BYTES_MAX);
    while (!cli_interrupted && (i = atomic_fetch_add(&a->next, 1)) < a->count) {
        if (a->lines[i].status == KN_RESULT_DONE) {
            a->found[i] = check_picture(a->r, &a->lines[i], &file);
            atomic_fetch_add(&a->bytes, file.len);
        }
        atomic_fetch_add(&a->finished, 1);
    }
    kn_buf_fini(&file);
    return NULL;
}

static void show_progress(struct audit *a) {
    if (!isatty(STDERR_FILENO)) return;
    while (!cli_interrupted && atomic_load(&a->finished) < a->count) {
        for (int i = 0; i < 10 && atomic_load(&a->finished) < a->count; i++) usleep(20000);
        fprintf(stderr, "\r\033[K%zu of %zu", atomic_load(&a->finished), a->count);
    }
    fputs("\r\033[K", stderr);
}

static int read_pictures(struct audit *a, int threads) {
    a->found = calloc(a->count + 1, sizeof *a->found);
    if (!a->found) return KN_ENOMEM;
    cpu_set_t cpus;
    if (threads <= 0) threads = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? 2 * CPU_COUNT(&cpus) : 2;
    if (threads > THREADS_MAX) threads = THREADS_MAX;
    pthread_t ids[THREADS_MAX];
    int started = 0;
    while (started < threads && pthread_create(&ids[started], NULL, work, a) == 0) started++;
    if (started == 0) work(a);
    show_progress(a);
    for (int i = 0; i < started; i++) pthread_join(ids[i], NULL);
    a->r->bytes = atomic_load(&a->bytes);
    int rc = cli_interrupted ? KN_ECANCELED : KN_OK;
    for (size_t i = 0; i < a->count; i++) {
        if (a->found[i] && rc == KN_OK)
            rc = verify_fault(a->r, a->lines[i].file, a->lines[i].number, "%s", a->found[i]);
        words_free(a->found[i]);
    }
    free(a->found);
    return rc;
}

static int by_name(const void *x, const void *y) {
    return strcmp(*(char *const *)x, *(char *const *)y);
}

/* The pictures that lines speak of, as file systems that ignore case compare them. */
static int listed_files(struct audit *a, struct kn_map **out) {
    *out = kn_map_create(a->count + 1);
    int rc = *out ? KN_OK : KN_ENOMEM;
    for (size_t i = 0; rc == KN_OK && i < a->count; i++) {
        struct manifest_line *l = &a->lines[i];
        char *fold = l->file ? names_fold(l->file) : NULL;
        if (!l->file) continue;
        rc = fold ? kn_map_put(*out, fold, strlen(fold), l) : KN_ENOMEM;
        if (rc == KN_EEXIST) {
            const struct manifest_line *other = kn_map_get(*out, fold, strlen(fold));
            rc = verify_fault(a->r, "manifest.jsonl", l->number, "file: %s again, line %u has it", l->file,
                              other->number);
        }
        free(fold);
    }
    return rc;
}

/* Files in images/ that no `done` line speaks of. Names that begin with a dot are not looked at. */
static int strays(struct audit *a) {
    char path[KN_PATH_MAX];
    struct kn_map *listed;
    int rc = kn_fs_join(path, sizeof path, a->r->dir, "images");
    if (rc) return rc;
    rc = listed_files(a, &listed);
    DIR *d = rc ? NULL : opendir(path);
    if (rc == KN_OK && !d && a->r->done) rc = verify_fault(a->r, "images", 0, "%s", strerror(errno));
    char **names = NULL;
    size_t count = 0, cap = 0;
    struct dirent *e;
    while (rc == KN_OK && d && (e = readdir(d))) {
        if (e->d_name[0] == '.') continue;
        char *name = words("images/%s", e->d_name), *fold = names_fold(name);
        const struct manifest_line *l = fold ? kn_map_get(listed, fold, strlen(fold)) : NULL;
        bool spoken_of = l && strcmp(l->file, name) == 0;
        free(fold);
        if (spoken_of) {
            words_free(name);
            continue;
        }
        if (count == cap) {
            cap = cap ? cap * 2 : 64;
            char **v = realloc(names, cap * sizeof *v);
            if (!v) {
                words_free(name);
                rc = KN_ENOMEM;
                break;
            }
            names = v;
        }
        names[count++] = name;
    }
    if (d) closedir(d);
    if (rc == KN_OK && count > 1) qsort(names, count, sizeof *names, by_name);
    for (size_t i = 0; i < count; i++) {
        if (rc == KN_OK) rc = verify_fault(a->r, names[i], 0, "no done line of manifest.jsonl speaks of it");
        words_free(names[i]);
    }
    free(names);
    kn_map_destroy(listed);
    return rc;
}

/* ---- the whole ---- */

static bool is_busy(const char *dir) {
    char path[KN_PATH_MAX];
    if (kn_fs_join(path, sizeof path, dir, ".lock")) return false;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return false;
    bool busy = flock(fd, LOCK_SH | LOCK_NB) != 0;
    close(fd);
    return busy;
}

int verify_folder(const char *dir, int threads, struct verify_report *out, struct kn_err *err) {
    memset(out, 0, sizeof *out);
    struct stat st;
    if (strlen(dir) >= sizeof out->dir) return kn_err_set(err, KN_ELIMIT, "the folder's path is too long");
    if (stat(dir, &st)) return kn_err_set(err, KN_EINVAL, "%s: %s", dir, strerror(errno));
    if (!S_ISDIR(st.st_mode)) return kn_err_set(err, KN_EINVAL, "%s: is not a folder", dir);
    snprintf(out->dir, sizeof out->dir, "%s", dir);
    out->busy = is_busy(dir);
    struct audit a = {.r = out};
    a.line_of = calloc(KN_TASKS_PER_BATCH_MAX, sizeof *a.line_of);
    int rc = a.line_of ? KN_OK : KN_ENOMEM;
    if (rc == KN_OK) rc = read_batch(&a, err);
    if (rc == KN_OK) rc = read_manifest(&a);
    if (rc == KN_OK) rc = read_pictures(&a, threads);
    if (rc == KN_OK) rc = strays(&a);
    for (size_t i = 0; i < a.count; i++) free(a.lines[i].file);
    free(a.line_of);
    free(a.lines);
    free(a.models);
    if (rc == KN_ECANCELED) return kn_err_set(err, rc, "interrupted");
    return rc ? kn_err_set(err, rc, "%s: %s", dir, kn_err_words(rc)) : KN_OK;
}
