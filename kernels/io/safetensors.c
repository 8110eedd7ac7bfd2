/* The safetensors reader and writer. See the header.
 *
 * A file is: u64 little-endian header length, that many bytes of JSON {"name": {"dtype", "shape",
 * "data_offsets"}}, then the data. Invariants that a file must keep before a single tensor is shown: the
 * header fits the file and the limit; every offset pair lies in the data; the tensors cover the data without
 * a hole or an overlap; length = product of the shape × the size of the type; no name appears twice over all
 * parts. Any thread, one at a time. */
#include "kernels/io/safetensors.h"

#include <assert.h>
#include <dirent.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/json.h"
#include "base/buf.h"
#include "base/fs.h"
#include "base/limits.h"

#define HEADER_BYTES_MAX (64u << 20)
#define TENSORS_MAX 100000
#define PARTS_MAX 256
#define TENSOR_NAME_MAX 512

struct part {
    void *map; /* owns when `mapped` */
    size_t len;
    bool mapped;
    json_object *header; /* owns; the tensors' names live in it */
    char *name;          /* owns; as messages name the file */
};

struct kx_weights {
    struct part parts[PARTS_MAX];
    int part_count;
    struct kx_weight *v; /* sorted by name once open */
    size_t count, cap;
};

struct dtype_row {
    const char *name;
    enum kx_dtype dtype;
    size_t bytes;
};
static const struct dtype_row dtypes[] = {
    {"F32", KX_F32, 4}, {"F16", KX_F16, 2}, {"BF16", KX_BF16, 2},
    {"I32", KX_I32, 4}, {"I64", KX_I64, 8}, {"U8", KX_U8, 1},
};

static const struct dtype_row *dtype_by_name(const char *name) {
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (!strcmp(name, dtypes[i].name)) return &dtypes[i];
    return NULL;
}

static const struct dtype_row *dtype_row(enum kx_dtype t) {
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (dtypes[i].dtype == t) return &dtypes[i];
    return NULL;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct kx_weight *)a)->name, ((const struct kx_weight *)b)->name);
}

static int by_place(const void *a, const void *b) {
    const struct kx_weight *x = a, *y = b;
    if (x->data != y->data) return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* A whole number ≥ 0 out of JSON; false when it is anything else. */
static bool json_index(json_object *o, int64_t *out) {
    if (!o || json_object_get_type(o) != json_type_int) return false;
    *out = json_object_get_int64(o);
    return *out >= 0 && *out < INT64_MAX;
}

static int parse_tensor(const char *file, const char *name, json_object *o, const char *data, size_t data_len,
                        struct kx_weight *w, struct kn_err *err) {
    if (!name[0] || strlen(name) > TENSOR_NAME_MAX)
        return kn_err_set(err, KN_EPARSE, "%s: a tensor's name is empty or over %d bytes", file,
                          TENSOR_NAME_MAX);
    json_object *jt = NULL, *js = NULL, *jo = NULL;
    if (json_object_get_type(o) != json_type_object || !json_object_object_get_ex(o, "dtype", &jt) ||
        !json_object_object_get_ex(o, "shape", &js) || !json_object_object_get_ex(o, "data_offsets", &jo) ||
        json_object_get_type(jt) != json_type_string || json_object_get_type(js) != json_type_array ||
        json_object_get_type(jo) != json_type_array || json_object_array_length(jo) != 2)
        return kn_err_set(err, KN_EPARSE, "%s: %s: needs dtype, shape and data_offsets", file, name);
    const struct dtype_row *row = dtype_by_name(json_object_get_string(jt));
    if (!row)
        return kn_err_set(err, KN_EUNSUPPORTED, "%s: %s: dtype %.16s is not supported", file, name,
                          json_object_get_string(jt));
    size_t ndim = json_object_array_length(js);
    if (ndim > KX_NDIM_MAX)
        return kn_err_set(err, KN_EPARSE, "%s: %s: more than %d dimensions", file, name, KX_NDIM_MAX);
    size_t bytes = row->bytes;
    for (size_t i = 0; i < ndim; i++) {
        int64_t d;
        if (!json_index(json_object_array_get_idx(js, i), &d))
            return kn_err_set(err, KN_EPARSE, "%s: %s: shape: not a whole number", file, name);
        if (__builtin_mul_overflow(bytes, (size_t)d, &bytes))
            return kn_err_set(err, KN_EPARSE, "%s: %s: shape: too large", file, name);
        w->shape[i] = d;
    }
    int64_t begin, end;
    if (!json_index(json_object_array_get_idx(jo, 0), &begin) ||
        !json_index(json_object_array_get_idx(jo, 1), &end) || end < begin || (uint64_t)end > data_len)
        return kn_err_set(err, KN_EPARSE, "%s: %s: data_offsets are outside of the file's data", file, name);
    if ((size_t)(end - begin) != bytes)
        return kn_err_set(err, KN_EPARSE, "%s: %s: data_offsets span %zu bytes, the shape %zu", file, name,
                          (size_t)(end - begin), bytes);
    w->name = name;
    w->dtype = row->dtype;
    w->ndim = (int)ndim;
    w->data = data + begin;
    w->bytes = bytes;
    return 0;
}

/* Appends the tensors of the part; on failure the part stays in w (closed with it). `name` is how messages
 * about a tensor will name the file, later; `file` is its whole path. */
static int parse_part(struct kx_weights *w, struct part *p, const char *file, const char *name,
                      struct kn_err *err) {
    const unsigned char *b = p->map;
    if (!(p->name = strdup(name))) return kn_err_set(err, KN_ENOMEM, "%s: out of memory", file);
    if (p->len < 8) return kn_err_set(err, KN_EPARSE, "%s: too short for a safetensors file", file);
    uint64_t header = 0;
    for (int i = 7; i >= 0; i--) header = header << 8 | b[i];
    if (header > HEADER_BYTES_MAX || header > p->len - 8)
        return kn_err_set(err, KN_EPARSE, "%s: a header of %llu bytes does not fit a file of %zu", file,
                          (unsigned long long)header, p->len);
    enum json_tokener_error je;
    size_t used;
    p->header = kn_json_parse((const char *)b + 8, (size_t)header, 8, &used, &je);
    if (je == json_tokener_error_size) return kn_err_set(err, KN_ENOMEM, "%s: out of memory", file);
    if (je != json_tokener_success || !p->header || json_object_get_type(p->header) != json_type_object)
        return kn_err_set(err, KN_EPARSE, "%s: the header is not a JSON object", file);
    for (size_t i = used; i < header; i++)
        if (b[8 + i] != ' ') return kn_err_set(err, KN_EPARSE, "%s: garbage behind the header", file);

    const char *data = (const char *)b + 8 + header;
    size_t data_len = p->len - 8 - (size_t)header, first = w->count;
    size_t more = (size_t)json_object_object_length(p->header);
    if (w->count + more > TENSORS_MAX)
        return kn_err_set(err, KN_ELIMIT, "%s: more than %d tensors", file, TENSORS_MAX);
    struct kx_weight *v = realloc(w->v, (w->count + more + 1) * sizeof *v);
    if (!v) return kn_err_set(err, KN_ENOMEM, "%s: out of memory", file);
    w->v = v;
    json_object_object_foreach(p->header, tensor, o) {
        if (!strcmp(tensor, "__metadata__")) continue;
        int rc = parse_tensor(file, tensor, o, data, data_len, &w->v[w->count], err);
        if (rc) return rc;
        w->v[w->count].mapped = p->mapped;
        w->v[w->count].file = p->name;
        w->count++;
    }
    /* no hole, no overlap: what the data holds is what the names say */
    qsort(w->v + first, w->count - first, sizeof *w->v, by_place);
    const char *at = data;
    for (size_t i = first; i < w->count; i++) {
        if ((const char *)w->v[i].data != at)
            return kn_err_set(err, KN_EPARSE, "%s: %s: overlaps another tensor or leaves a hole", file,
                              w->v[i].name);
        at += w->v[i].bytes;
    }
    if (at != data + data_len) return kn_err_set(err, KN_EPARSE, "%s: bytes behind the last tensor", file);
    return 0;
}

static int finish(struct kx_weights *w, const char *file, struct kn_err *err) {
    if (w->count) qsort(w->v, w->count, sizeof *w->v, by_name);
    for (size_t i = 1; i < w->count; i++)
        if (!strcmp(w->v[i - 1].name, w->v[i].name))
            return kn_err_set(err, KN_EPARSE, "%s: %s: appears twice", file, w->v[i].name);
    return 0;
}

static int map_part(struct kx_weights *w, const char *path, const char *name, struct kn_err *err) {
    if (w->part_count == PARTS_MAX)
        return kn_err_set(err, KN_ELIMIT, "%s: more than %d parts", path, PARTS_MAX);
    int fd, rc;
    uint64_t bytes;
    if ((rc = kn_fs_open(path, KN_FILE_BYTES_MAX, &fd, &bytes, err))) return rc;
    if (bytes < 8) {
        close(fd);
        return kn_err_set(err, KN_EPARSE, "%s: not a safetensors file", path);
    }
    void *map = mmap(NULL, (size_t)bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (map == MAP_FAILED) return kn_err_set(err, KN_EIO, "%s: mmap: %m", path);
    struct part *p = &w->parts[w->part_count++];
    *p = (struct part){.map = map, .len = (size_t)bytes, .mapped = true};
    return parse_part(w, p, path, name, err);
}

int kx_weights_parse(const void *data, size_t len, const char *name, struct kx_weights **out,
                     struct kn_err *err) {
    *out = NULL;
    struct kx_weights *w = calloc(1, sizeof *w);
    if (!w) return kn_err_set(err, KN_ENOMEM, "%s: out of memory", name);
    struct part *p = &w->parts[w->part_count++];
    p->map = (void *)(uintptr_t)data;
    p->len = len;
    int rc = parse_part(w, p, name, name, err);
    if (!rc) rc = finish(w, name, err);
    if (rc) {
        kx_weights_close(w);
        return rc;
    }
    *out = w;
    return 0;
}

/* ---- which files ---- */

static bool part_name_ok(const char *s) {
    return s[0] && s[0] != '.' && !strchr(s, '/') && strlen(s) < 256;
}

static int index_files(const char *dir, const char *index, int (*each)(void *, const char *, struct kn_err *),
                       void *ctx, struct kn_err *err) {
    struct kn_buf b;
    kn_buf_init(&b, HEADER_BYTES_MAX);
    json_object *root = NULL, *map = NULL;
    const char *names[PARTS_MAX];
    int count = 0;
    int rc = kn_fs_read(index, &b, err);
    if (rc) goto out;
    root = kn_json_parse(b.data ? b.data : "", b.len, 8, NULL, NULL);
    if (!root || !json_object_object_get_ex(root, "weight_map", &map) ||
        json_object_get_type(map) != json_type_object) {
        rc = kn_err_set(err, KN_EPARSE, "%s: no weight_map", index);
        goto out;
    }
    rc = each(ctx, index, err);
    json_object_object_foreach(map, key, o) {
        if (rc) break;
        const char *file = json_object_get_type(o) == json_type_string ? json_object_get_string(o) : "";
        if (!part_name_ok(file)) {
            rc = kn_err_set(err, KN_EPARSE, "%s: weight_map: %s: not a file name", index, key);
            break;
        }
        bool seen = false;
        for (int i = 0; i < count && !seen; i++) seen = !strcmp(names[i], file);
        if (seen) continue;
        if (count == PARTS_MAX) {
            rc = kn_err_set(err, KN_ELIMIT, "%s: more than %d parts", index, PARTS_MAX);
            break;
        }
        names[count++] = file;
        char path[KN_PATH_MAX];
        rc = kn_fs_join(path, sizeof path, dir, file);
        if (rc) kn_err_set(err, rc, "%s: path too long", file);
        if (!rc) rc = each(ctx, path, err);
    }
out:
    json_object_put(root);
    kn_buf_fini(&b);
    return rc;
}

int kx_weights_files(const char *dir, const char *stem, int (*each)(void *, const char *, struct kn_err *),
                     void *ctx, struct kn_err *err) {
    static const char *const forms[] = {"%s/%s.safetensors", "%s/%s.safetensors.index.json",
                                        "%s/%s.fp16.safetensors", "%s/%s.safetensors.index.fp16.json"};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        char path[KN_PATH_MAX];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        int n = snprintf(path, sizeof path, forms[i], dir, stem);
#pragma GCC diagnostic pop
        if (n < 0 || (size_t)n >= sizeof path) return kn_err_set(err, KN_ELIMIT, "%s: path too long", dir);
        if (!kn_fs_exists(path)) continue;
        return strstr(forms[i], "index") ? index_files(dir, path, each, ctx, err) : each(ctx, path, err);
    }
    char bin[KN_PATH_MAX];
    int n = snprintf(bin, sizeof bin, "%s/%s.bin", dir, stem);
    if (n > 0 && (size_t)n < sizeof bin && kn_fs_exists(bin))
        return kn_err_set(err, KN_EUNSUPPORTED,
                          "%s: only a pickle (%s.bin) is there; kiln reads safetensors alone", dir, stem);
    return kn_err_set(err, KN_ENOENT, "%s: no %s.safetensors", dir, stem);
}

static int open_file(void *ctx, const char *path, struct kn_err *err) {
    size_t len = strlen(path);
    if (len > 5 && !strcmp(path + len - 5, ".json")) return 0; /* the index itself */
    const char *slash = strrchr(path, '/');
    return map_part(ctx, path, slash ? slash + 1 : path, err);
}

int kx_weights_open_file(const char *path, struct kx_weights **out, struct kn_err *err) {
    *out = NULL;
    struct kx_weights *w = calloc(1, sizeof *w);
    if (!w) return kn_err_set(err, KN_ENOMEM, "%s: out of memory", path);
    int rc = map_part(w, path, path, err);
    if (!rc) rc = finish(w, path, err);
    if (rc) {
        kx_weights_close(w);
        return rc;
    }
    *out = w;
    return 0;
}

int kx_weights_open(const char *dir, const char *stem, struct kx_weights **out, struct kn_err *err) {
    *out = NULL;
    struct kx_weights *w = calloc(1, sizeof *w);
    if (!w) return kn_err_set(err, KN_ENOMEM, "%s: out of memory", dir);
    int rc = kx_weights_files(dir, stem, open_file, w, err);
    if (!rc) rc = finish(w, dir, err);
    if (rc) {
        kx_weights_close(w);
        return rc;
    }
    *out = w;
    return 0;
}

void kx_weights_close(struct kx_weights *w) {
    if (!w) return;
    for (int i = 0; i < w->part_count; i++) {
        json_object_put(w->parts[i].header);
        free(w->parts[i].name);
        if (w->parts[i].mapped) munmap(w->parts[i].map, w->parts[i].len);
    }
    free(w->v);
    free(w);
}

size_t kx_weights_count(const struct kx_weights *w) {
    return w->count;
}

const struct kx_weight *kx_weights_at(const struct kx_weights *w, size_t i) {
    assert(i < w->count);
    return &w->v[i];
}

const struct kx_weight *kx_weights_find(const struct kx_weights *w, const char *name) {
    struct kx_weight key = {.name = name};
    return w->count ? bsearch(&key, w->v, w->count, sizeof *w->v, by_name) : NULL;
}

const char *kx_weights_metadata(const struct kx_weights *w, const char *key) {
    json_object *all = NULL, *v = NULL;
    if (!w->part_count || !json_object_object_get_ex(w->parts[0].header, "__metadata__", &all) ||
        !json_object_is_type(all, json_type_object) || !json_object_object_get_ex(all, key, &v) ||
        !json_object_is_type(v, json_type_string))
        return NULL;
    return json_object_get_string(v);
}

/* ---- conversion ---- */

static float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = (h >> 10) & 31, man = h & 1023, u;
    if (exp == 31) {
        u = sign | 0x7f800000u | man << 13;
    } else if (exp) {
        u = sign | (exp + 112) << 23 | man << 13;
    } else { /* zero and subnormals: man × 2⁻²⁴, exact in f32 */
        float f = (float)man * 0x1p-24f;
        memcpy(&u, &f, 4);
        u |= sign;
    }
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static void halves_to_floats(const char *p, float *out, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, 2);
        out[i] = half_to_float(h);
    }
}

#if defined(__x86_64__)
/* Eight at a time; every processor with AVX2 has F16C too. */
__attribute__((target("avx,f16c"))) static size_t halves_by_eight(const char *p, float *out, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i,
                         _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 2 * i))));
    return i;
}
#endif

/* The pages that are the tensor's alone. They stay in the system's cache of the file. */
static void let_go(const struct kx_weight *w) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)w->data,
              from = (begin + page - 1) / page * page, to = (begin + w->bytes) / page * page;
    /* a failure costs memory, nothing else */
    if (w->mapped && from < to) (void)madvise((void *)from, to - from, MADV_DONTNEED);
}

/* n values from the data at p on. */
static int convert(enum kx_dtype dtype, const char *p, size_t n, float *out) {
    size_t done = 0;
    switch (dtype) {
    case KX_F32:
        memcpy(out, p, n * sizeof *out);
        return 0;
    case KX_F16:
#if defined(__x86_64__)
        done = __builtin_cpu_supports("avx2") ? halves_by_eight(p, out, n) : 0;
#endif
        halves_to_floats(p + 2 * done, out + done, n - done);
        return 0;
    case KX_BF16:
        for (size_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, p + 2 * i, 2);
            uint32_t u = (uint32_t)h << 16;
            memcpy(&out[i], &u, 4);
        }
        return 0;
    default:
        return KN_EUNSUPPORTED;
    }
}

int kx_weight_f32(const struct kx_weight *w, float *out) {
    int rc = convert(w->dtype, w->data, w->bytes / dtype_row(w->dtype)->bytes, out);
    let_go(w);
    return rc;
}

/* The exponent of a NaN or an infinity is all ones: one more in its last bit carries into the sign's. */
static bool all_finite(const float *v, size_t n) {
    typedef uint32_t lanes __attribute__((vector_size(64)));
    enum { LANES = sizeof(lanes) / sizeof(uint32_t) };
    lanes u, carry = {0};
    for (; n >= LANES; n -= LANES, v += LANES) {
        memcpy(&u, v, sizeof u);
        carry |= (u & 0x7fffffffu) + 0x00800000u;
    }
    uint32_t one, all = 0;
    for (size_t i = 0; i < n; i++) {
        memcpy(&one, &v[i], sizeof one);
        all |= (one & 0x7fffffffu) + 0x00800000u;
    }
    for (int k = 0; k < LANES; k++) all |= carry[k];
    return all < 0x80000000u;
}

int kx_weight_read(const struct kx_weight *w, float *out, struct kn_err *err) {
    enum { BLOCK = 4096 }; /* values that are looked at while they are still in the first cache */
    size_t each = dtype_row(w->dtype)->bytes, n = w->bytes / each;
    int rc = 0;
    for (size_t at = 0; at < n && !rc; at += BLOCK) {
        size_t count = n - at < BLOCK ? n - at : BLOCK;
        if ((rc = convert(w->dtype, (const char *)w->data + at * each, count, out + at)))
            kn_err_set(err, rc, "%s: %.200s: whole numbers where weights should be", w->file, w->name);
        else if (!all_finite(out + at, count))
            rc = kn_err_set(err, KN_EPARSE, "%s: %.200s: a value is NaN or infinite; the file is damaged",
                            w->file, w->name);
    }
    let_go(w);
    return rc;
}

/* ---- writing ---- */

#define DUMP_TENSORS_MAX 16384

struct dump_entry {
    char name[256];
    enum kx_dtype dtype;
    int ndim;
    int64_t shape[KX_NDIM_MAX];
    void *data;
    size_t bytes;
};

struct kx_dump {
    struct dump_entry *v;
    size_t count, cap;
};

int kx_dump_create(struct kx_dump **out) {
    *out = calloc(1, sizeof **out);
    return *out ? 0 : KN_ENOMEM;
}

void kx_dump_destroy(struct kx_dump *d) {
    if (!d) return;
    for (size_t i = 0; i < d->count; i++) free(d->v[i].data);
    free(d->v);
    free(d);
}

int kx_dump_add(struct kx_dump *d, const char *name, enum kx_dtype dtype, const int64_t *shape, int ndim,
                const void *data) {
    const struct dtype_row *row = dtype_row(dtype);
    assert(row && ndim >= 0 && ndim <= KX_NDIM_MAX);
    if (d->count == DUMP_TENSORS_MAX || strlen(name) >= sizeof d->v->name) return KN_ELIMIT;
    if (d->count == d->cap) {
        size_t cap = d->cap ? 2 * d->cap : 64;
        struct dump_entry *v = realloc(d->v, cap * sizeof *v);
        if (!v) return KN_ENOMEM;
        d->v = v;
        d->cap = cap;
    }
    struct dump_entry *e = &d->v[d->count];
    *e = (struct dump_entry){.dtype = dtype, .ndim = ndim, .bytes = row->bytes};
    strcpy(e->name, name);
    for (int i = 0; i < ndim; i++) {
        e->shape[i] = shape[i];
        e->bytes *= (size_t)shape[i];
    }
    e->data = malloc(e->bytes ? e->bytes : 1);
    if (!e->data) return KN_ENOMEM;
    memcpy(e->data, data, e->bytes);
    d->count++;
    return 0;
}

int kx_dump_write(struct kx_dump *d, const char *path, struct kn_err *err) {
    struct kn_buf b;
    kn_buf_init(&b, SIZE_MAX / 2);
    size_t at = 0;
    int rc = kn_buf_append(&b, "\0\0\0\0\0\0\0\0", 8);
    if (!rc) rc = kn_buf_appends(&b, "{");
    for (size_t i = 0; i < d->count && !rc; i++) {
        struct dump_entry *e = &d->v[i];
        rc = kn_buf_appendf(&b, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i ? "," : "", e->name,
                            dtype_row(e->dtype)->name);
        for (int k = 0; k < e->ndim && !rc; k++)
            rc = kn_buf_appendf(&b, "%s%lld", k ? "," : "", (long long)e->shape[k]);
        if (!rc) rc = kn_buf_appendf(&b, "],\"data_offsets\":[%zu,%zu]}", at, at + e->bytes);
        at += e->bytes;
    }
    if (!rc) rc = kn_buf_appends(&b, "}");
    while (!rc && b.len % 8) rc = kn_buf_appends(&b, " "); /* the data stays aligned */
    if (!rc) {
        uint64_t header = b.len - 8;
        for (int i = 0; i < 8; i++) b.data[i] = (char)(header >> (8 * i));
    }
    for (size_t i = 0; i < d->count && !rc; i++) rc = kn_buf_append(&b, d->v[i].data, d->v[i].bytes);
    if (rc)
        kn_err_set(err, rc, "%s: %s", path, kn_err_words(rc));
    else
        rc = kn_fs_replace(path, b.data, b.len, false, err);
    kn_buf_fini(&b);
    return rc;
}
