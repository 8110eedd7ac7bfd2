/* Describes a model's folder without loading its weights: kiln_model_describe (kiln.h). The hash is over
 * the files that kiln_model_load reads and that can move a pixel: model_index.json, the networks' and the
 * scheduler's configs, the tokenizer's files, the weights. kiln.json, which only holds defaults, is not among
 * them: a task that states its settings is the same task before and after it changes.
 *
 * The cache is one small text file a folder: a line "sha256 size inode mtime_ns path" for each file, replaced
 * whole. A line counts only when all four agree with the file; a mistake in it costs a hash, never a wrong
 * one. Any thread. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fs.h"
#include "base/hash.h"
#include "kernels/io/config.h"
#include "kernels/io/safetensors.h"
#include "kernels/kiln.h"
#include "kernels/text/tokenizer.h"

#define FILES_MAX 1024
#define CACHE_BYTES_MAX (4u << 20)

struct file {
    char *path; /* owns; the folder's path and what follows */
    uint64_t size, inode, mtime_ns;
    char hex[KN_SHA256_HEX]; /* empty: not known yet */
};

struct files {
    struct file v[FILES_MAX];
    size_t count;
};

static int add_file(void *ctx, const char *path, struct kn_err *err) {
    struct files *f = ctx;
    struct stat st;
    if (stat(path, &st))
        return kn_err_set(err, errno == ENOENT ? KN_ENOENT : KN_EIO, "%s: %s", path, strerror(errno));
    if (f->count == FILES_MAX) return kn_err_set(err, KN_ELIMIT, "%s: more than %d files", path, FILES_MAX);
    struct file *e = &f->v[f->count];
    *e = (struct file){.path = strdup(path),
                       .size = (uint64_t)st.st_size,
                       .inode = (uint64_t)st.st_ino,
                       .mtime_ns = (uint64_t)st.st_mtim.tv_sec * 1000000000u + (uint64_t)st.st_mtim.tv_nsec};
    if (!e->path) return kn_err_set(err, KN_ENOMEM, "out of memory");
    f->count++;
    return 0;
}

static int join(const char *dir, const char *name, char path[KN_PATH_MAX], struct kn_err *err) {
    int rc = kn_fs_join(path, KN_PATH_MAX, dir, name);
    return rc ? kn_err_set(err, rc, "%s: path too long", dir) : 0;
}

static int list_files(const char *dir, bool xl, struct files *f, struct kn_err *err) {
    static const struct {
        const char *path, *stem; /* stem: of weights, NULL for a file */
        bool xl;
    } parts[] = {{"model_index.json", NULL, false},          {"scheduler/scheduler_config.json", NULL, false},
                 {"text_encoder/config.json", NULL, false},  {"text_encoder_2/config.json", NULL, true},
                 {"unet/config.json", NULL, false},          {"vae/config.json", NULL, false},
                 {"text_encoder", "model", false},           {"text_encoder_2", "model", true},
                 {"unet", "diffusion_pytorch_model", false}, {"vae", "diffusion_pytorch_model", false}};
    static const char *const tokenizers[] = {"tokenizer", "tokenizer_2"};
    char path[KN_PATH_MAX];
    int rc = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts && !rc; i++) {
        if (parts[i].xl && !xl) continue;
        rc = join(dir, parts[i].path, path, err);
        if (!rc && parts[i].stem) rc = kx_weights_files(path, parts[i].stem, add_file, f, err);
        if (!rc && !parts[i].stem) rc = add_file(f, path, err);
    }
    for (int i = 0; i < (xl ? 2 : 1) && !rc; i++) {
        rc = join(dir, tokenizers[i], path, err);
        if (!rc) rc = kx_tokenizer_paths(path, add_file, f, err);
    }
    if (!rc) rc = join(dir, "kiln-fp8.json", path, err); /* the scales of eight-bit operands (fp8.c) */
    if (!rc && kn_fs_exists(path)) rc = add_file(f, path, err);
    return rc;
}

static int by_path(const void *a, const void *b) {
    return strcmp(((const struct file *)a)->path, ((const struct file *)b)->path);
}

/* ---- the cache ---- */

static int cache_path(const char *cache_dir, const char *real, char out[KN_PATH_MAX]) {
    char name[64];
    snprintf(name, sizeof name, "model-%016" PRIx64 ".txt", kn_hash64(real, strlen(real), 0));
    return kn_fs_join(out, KN_PATH_MAX, cache_dir, name);
}

static void cache_read(const char *cache, struct files *f) {
    struct kn_buf b;
    kn_buf_init(&b, CACHE_BYTES_MAX);
    if (!kn_fs_exists(cache) || kn_fs_read(cache, &b, NULL) || !b.data) goto out;
    for (char *line = b.data, *next; *line; line = next) {
        char *nl = strchr(line, '\n');
        next = nl ? nl + 1 : line + strlen(line);
        if (nl) *nl = 0;
        char hex[KN_SHA256_HEX];
        uint64_t size, inode, mtime;
        int at = 0;
        if (sscanf(line, "%64[0-9a-f] %" SCNu64 " %" SCNu64 " %" SCNu64 " %n", hex, &size, &inode, &mtime,
                   &at) != 4 ||
            !at || strlen(hex) != KN_SHA256_HEX - 1)
            continue;
        for (size_t i = 0; i < f->count; i++) {
            struct file *e = &f->v[i];
            if (e->size == size && e->inode == inode && e->mtime_ns == mtime && !strcmp(e->path, line + at))
                memcpy(e->hex, hex, sizeof hex);
        }
    }
out:
    kn_buf_fini(&b);
}

/* Not being able to remember is no failure. */
static void cache_write(const char *cache_dir, const char *cache, const struct files *f) {
    struct kn_buf b;
    kn_buf_init(&b, CACHE_BYTES_MAX);
    int rc = kn_fs_mkdirs(cache_dir, 0700, NULL);
    for (size_t i = 0; i < f->count && !rc; i++) {
        const struct file *e = &f->v[i];
        rc = kn_buf_appendf(&b, "%s %" PRIu64 " %" PRIu64 " %" PRIu64 " %s\n", e->hex, e->size, e->inode,
                            e->mtime_ns, e->path);
    }
    if (!rc) rc = kn_fs_replace(cache, b.data, b.len, false, NULL);
    (void)rc;
    kn_buf_fini(&b);
}

/* ---- */

static int hash_files(const char *real, const char *cache_dir, struct files *f, uint8_t out[KN_SHA256_BYTES],
                      struct kn_err *err) {
    char cache[KN_PATH_MAX];
    bool remember = cache_dir && !cache_path(cache_dir, real, cache), fresh = false;
    if (remember) cache_read(cache, f);
    qsort(f->v, f->count, sizeof *f->v, by_path);
    struct kn_sha256 *h = kn_sha256_create();
    if (!h) return kn_err_set(err, KN_ENOMEM, "out of memory");
    int rc = 0;
    size_t skip = strlen(real) + (real[strlen(real) - 1] != '/');
    for (size_t i = 0; i < f->count && !rc; i++) {
        struct file *e = &f->v[i];
        if (!e->hex[0]) {
            uint8_t digest[KN_SHA256_BYTES];
            if ((rc = kn_sha256_file(e->path, digest, err))) break;
            kn_hex(digest, sizeof digest, e->hex);
            fresh = true;
        }
        const char *relative = e->path + skip;
        kn_sha256_update(h, relative, strlen(relative) + 1);
        kn_sha256_update(h, e->hex, strlen(e->hex));
        kn_sha256_update(h, "\n", 1);
    }
    kn_sha256_final(h, out);
    if (!rc && fresh && remember) cache_write(cache_dir, cache, f);
    return rc;
}

int kiln_model_describe(const char *dir, const char *cache_dir, struct kn_model_info *out,
                        struct kn_err *err) {
    *out = (struct kn_model_info){0};
    struct kx_config cfg;
    char *real = realpath(dir, NULL);
    if (!real) return kn_err_set(err, errno == ENOENT ? KN_ENOENT : KN_EIO, "%s: %s", dir, strerror(errno));
    struct files *f = calloc(1, sizeof *f);
    int rc = f ? kx_config_read(real, &cfg, err) : kn_err_set(err, KN_ENOMEM, "out of memory");
    if (!rc) rc = list_files(real, cfg.index.xl, f, err);
    if (!rc) rc = hash_files(real, cache_dir, f, out->sha256, err);
    if (!rc) {
        const char *slash = strrchr(real, '/');
        snprintf(out->name, sizeof out->name, "%.*s", KN_NAME_MAX, slash && slash[1] ? slash + 1 : "model");
        out->defaults = cfg.defaults;
        if (!cfg.defaults.sampler) memcpy(out->scheduler, cfg.index.scheduler, sizeof out->scheduler);
        out->size_multiple = (uint32_t)cfg.size_multiple;
        struct kiln_memory memory;
        if (!kiln_model_memory(real, cfg.defaults.width, cfg.defaults.height, &memory, NULL)) {
            out->memory_weights = memory.weights;
            out->memory_image = memory.image;
        } /* else the load says what is wrong with the files */
    }
    for (size_t i = 0; f && i < f->count; i++) free(f->v[i].path);
    free(f);
    free(real);
    return rc;
}
