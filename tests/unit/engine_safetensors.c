/* The safetensors reader: what it takes, what it refuses, and that no cut or changed byte of a file makes it
 * read beyond it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/io/safetensors.h"
#include "tests/unit/check.h"

/* A file from its header's text and `data` bytes of data (their values run 0, 1, 2 …). Malloc'd at its exact
 * size, so that a sanitizer sees every step beyond it. */
static unsigned char *file_of(const char *header, size_t data, size_t *len) {
    size_t h = strlen(header);
    *len = 8 + h + data;
    unsigned char *f = malloc(*len ? *len : 1);
    CHECK(f);
    for (int i = 0; i < 8; i++) f[i] = (unsigned char)((uint64_t)h >> (8 * i));
    memcpy(f + 8, header, h);
    for (size_t i = 0; i < data; i++) f[8 + h + i] = (unsigned char)i;
    return f;
}

static int parse(const char *header, size_t data, struct kn_err *err) {
    size_t len;
    unsigned char *f = file_of(header, data, &len);
    struct kx_weights *w = NULL;
    int rc = kx_weights_parse(f, len, "x", &w, err);
    kx_weights_close(w);
    free(f);
    return rc;
}

TEST(tensors_are_found_by_name_with_shape_and_data) {
    size_t len;
    unsigned char *f = file_of(
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"b\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[4,12]},"
        "\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]},"
        "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[12,12]},"
        "\"scalar\":{\"dtype\":\"I32\",\"shape\":[],\"data_offsets\":[12,16]}}   ",
        16, &len);
    struct kx_weights *w;
    struct kn_err err = {0};
    CHECK_MSG(!kx_weights_parse(f, len, "x", &w, &err), "%s", err.text);
    CHECK_INT(kx_weights_count(w), 4);
    const struct kx_weight *b = kx_weights_find(w, "b");
    CHECK(b && b->ndim == 2 && b->shape[0] == 2 && b->shape[1] == 1 && b->bytes == 8);
    CHECK_INT(*(const unsigned char *)b->data, 4);
    CHECK(kx_weights_find(w, "scalar")->ndim == 0);
    CHECK(!kx_weights_find(w, "c"));
    CHECK_STR(kx_weights_at(w, 0)->name, "a");
    CHECK_STR(kx_weights_at(w, 0)->file, "x");
    CHECK_STR(kx_weights_metadata(w, "format"), "pt");
    CHECK(!kx_weights_metadata(w, "b"));
    kx_weights_close(w);
    free(f);
}

TEST(every_kind_of_damage_is_refused_with_the_tensors_name) {
    static const struct {
        const char *header;
        size_t data;
        const char *says;
    } bad[] = {
        {"", 0, "header"},
        {"[]", 0, "header"},
        {"{\"a\":1}", 0, "a:"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "a:"},
        {"{\"a\":{\"dtype\":\"F8\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "F8"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "span"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]}}", 4, "outside"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "outside"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4, "outside"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]}}", 4,
         "too large"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[9223372036854775807],\"data_offsets\":[0,4]}}", 4, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, "dimensions"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 8, "behind"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "hole"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
         4, "overlaps"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}x", 4, "behind the header"},
        {"{\"\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "empty"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[[[[[[[[[[1]]]]]]]]]],\"data_offsets\":[0,4]}}", 4, "header"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct kn_err err = {0};
        int rc = parse(bad[i].header, bad[i].data, &err);
        CHECK_MSG(rc == KN_EPARSE || rc == KN_EUNSUPPORTED, "%s: %d %s", bad[i].header, rc, err.text);
        CHECK_MSG(strstr(err.text, bad[i].says), "%s: %s", bad[i].header, err.text);
    }
}

TEST(no_cut_and_no_changed_byte_of_a_file_is_read_beyond) {
    static const char header[] =
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[8,14]}}";
    size_t len;
    unsigned char *whole = file_of(header, 14, &len);
    struct kn_err err;
    struct kx_weights *w;
    int taken = 0;
    for (size_t n = 0; n <= len; n++) {
        unsigned char *cut = malloc(n ? n : 1);
        memcpy(cut, whole, n);
        w = NULL;
        int rc = kx_weights_parse(cut, n, "x", &w, &err);
        CHECK((rc == 0) == (n == len));
        kx_weights_close(w);
        free(cut);
    }
    for (size_t at = 0; at < len; at++)
        for (int v = 0; v < 256; v += 5) {
            unsigned char *copy = malloc(len);
            memcpy(copy, whole, len);
            copy[at] = (unsigned char)v;
            w = NULL;
            if (!kx_weights_parse(copy, len, "x", &w, &err)) {
                taken++;
                for (size_t i = 0; i < kx_weights_count(w); i++) {
                    float f[8];
                    const struct kx_weight *t = kx_weights_at(w, i);
                    CHECK(t->bytes <= 14);
                    int rc = kx_weight_f32(t, f);
                    CHECK(rc == 0 || rc == KN_EUNSUPPORTED);
                }
            }
            kx_weights_close(w);
            free(copy);
        }
    CHECK(taken > 0);
    free(whole);
}

TEST(halves_become_floats_exactly) {
    static const struct {
        uint16_t half;
        float value;
    } rows[] = {{0x0000, 0},
                {0x8000, -0.0f},
                {0x3c00, 1},
                {0xc000, -2},
                {0x7bff, 65504},
                {0x0400, 0x1p-14f},
                {0x03ff, 0x1.ff8p-15f},
                {0x0001, 0x1p-24f},
                {0x7c00, INFINITY},
                {0x3555, 0x1.554p-2f}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct kx_weight w = {.dtype = KX_F16, .data = &rows[i].half, .bytes = 2};
        float f;
        CHECK_INT(kx_weight_f32(&w, &f), 0);
        CHECK_MEM(&f, &rows[i].value, 4);
    }
    uint16_t nan = 0x7e00, brain = 0x3fc0;
    float f;
    CHECK(!kx_weight_f32(&(struct kx_weight){.dtype = KX_F16, .data = &nan, .bytes = 2}, &f) && isnan(f));
    CHECK(!kx_weight_f32(&(struct kx_weight){.dtype = KX_BF16, .data = &brain, .bytes = 2}, &f) && f == 1.5f);
    CHECK_INT(kx_weight_f32(&(struct kx_weight){.dtype = KX_I64, .data = rows, .bytes = 8}, &f),
              KN_EUNSUPPORTED);
}

TEST(halves_become_the_same_floats_alone_and_in_a_row) {
    enum { N = 65536 + 5 }; /* with an odd end */
    static uint16_t halves[N + 1];
    static float row[N];
    for (int i = 0; i < N; i++) halves[i + 1] = (uint16_t)i;
    for (int from = 0; from < 2; from++) {
        struct kx_weight w = {.dtype = KX_F16, .data = &halves[from], .bytes = 2 * N};
        CHECK_INT(kx_weight_f32(&w, row), 0);
        for (int i = 0; i < N; i++) {
            float alone;
            w = (struct kx_weight){.dtype = KX_F16, .data = &halves[from + i], .bytes = 2};
            CHECK_INT(kx_weight_f32(&w, &alone), 0);
            CHECK_MSG(isnan(alone) ? isnan(row[i]) : !memcmp(&alone, &row[i], 4), "half 0x%04x",
                      halves[from + i]);
        }
    }
}

TEST(a_value_that_is_not_finite_is_refused_with_file_and_tensor) {
    enum { N = 4096 + 8 + 3 }; /* over a block, with an odd end */
    static const struct {
        enum kx_dtype dtype;
        uint32_t bits;
        bool fine;
    } rows[] = {{KX_F32, 0x7f7fffff, true},  {KX_F32, 0xff7fffff, true},  {KX_F32, 0x7f800000, false},
                {KX_F32, 0xff800000, false}, {KX_F32, 0x7f800001, false}, {KX_F32, 0xffc00000, false},
                {KX_F16, 0x7bff, true},      {KX_F16, 0xfc00, false},     {KX_F16, 0x7e00, false},
                {KX_BF16, 0x7f7f, true},     {KX_BF16, 0x7f80, false},    {KX_BF16, 0xffc0, false}};
    static const size_t places[] = {0, 5, 4095, 4096, 4103, 4104, N - 1};
    static uint32_t data[N];
    static float out[N];
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
        for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
            size_t each = rows[r].dtype == KX_F32 ? 4 : 2;
            struct kx_weight w = {.name = "conv_in.weight",
                                  .file = "unet.safetensors",
                                  .dtype = rows[r].dtype,
                                  .data = data,
                                  .bytes = N * each};
            struct kn_err err = {0};
            memset(data, 0, sizeof data);
            memcpy((char *)data + places[i] * each, &rows[r].bits,
                   each); /* little-endian: the low half first */
            int rc = kx_weight_read(&w, out, &err);
            CHECK_MSG(rc == (rows[r].fine ? 0 : KN_EPARSE), "type %d, 0x%x at %zu: %d", rows[r].dtype,
                      rows[r].bits, places[i], rc);
            CHECK_MSG(!rc || !strcmp(err.text,
                                     "unet.safetensors: conv_in.weight: a value is NaN or infinite; "
                                     "the file is damaged"),
                      "%s", err.text);
        }
    struct kn_err err = {0};
    struct kx_weight whole = {.name = "ids", .file = "f", .dtype = KX_I64, .data = data, .bytes = 16};
    CHECK_INT(kx_weight_read(&whole, out, &err), KN_EUNSUPPORTED);
    CHECK_STR(err.text, "f: ids: whole numbers where weights should be");
}

TEST(a_dump_is_read_back_as_it_was_written) {
    char path[] = "/tmp/kiln-dump-XXXXXX", file[64];
    CHECK(mkdtemp(path));
    snprintf(file, sizeof file, "%s/d.safetensors", path);
    struct kx_dump *d;
    struct kn_err err = {0};
    float a[6] = {1, 2, 3, 4, 5, 6};
    int32_t b[2] = {-7, 9};
    CHECK(!kx_dump_create(&d));
    CHECK(!kx_dump_add(d, "latents_000", KX_F32, (int64_t[]){2, 3}, 2, a));
    CHECK(!kx_dump_add(d, "input_ids", KX_I32, (int64_t[]){1, 2}, 2, b));
    CHECK_MSG(!kx_dump_write(d, file, &err), "%s", err.text);
    kx_dump_destroy(d);
    struct kx_weights *w;
    CHECK_MSG(!kx_weights_open(path, "d", &w, &err), "%s", err.text);
    CHECK_MEM(kx_weights_find(w, "latents_000")->data, a, sizeof a);
    CHECK_MEM(kx_weights_find(w, "input_ids")->data, b, sizeof b);
    kx_weights_close(w);
    unlink(file);
    rmdir(path);
}

/* The part of this process' memory that is files' pages, in KiB; −1 where the system does not say. */
static long mapped_kib(void) {
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    long kib = -1;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "RssFile: %ld kB", &kib) == 1) break;
    if (f) fclose(f);
    return kib;
}

TEST(a_tensor_that_was_read_is_not_in_memory_twice) {
    enum { VALUES = 4 << 20 };
    char dir[] = "/tmp/kiln-safetensors-XXXXXX", path[64], header[128];
    CHECK(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/x.safetensors", dir);
    snprintf(header, sizeof header, "{\"a\":{\"dtype\":\"F32\",\"shape\":[%d],\"data_offsets\":[0,%d]}}",
             VALUES, 4 * VALUES);
    size_t len;
    unsigned char *data = file_of(header, 4 * VALUES, &len);
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(data, 1, len, f) == len && !fclose(f));
    free(data);
    float *out = malloc(VALUES * sizeof *out), *again = malloc(VALUES * sizeof *again);
    CHECK(out && again);
    struct kx_weights *w;
    struct kn_err err = {0};
    CHECK_MSG(!kx_weights_open(dir, "x", &w, &err), "%s", err.text);
    long before = mapped_kib();
    CHECK(!kx_weight_f32(kx_weights_at(w, 0), out));
    long after = mapped_kib();
    CHECK_MSG(before < 0 || after - before < 4096, "%ld KiB more are mapped", after - before);
    CHECK(!kx_weight_f32(kx_weights_at(w, 0), again));
    CHECK_MEM(out, again, VALUES * sizeof *out);
    kx_weights_close(w);
    free(out);
    free(again);
    unlink(path);
    rmdir(dir);
}

TEST(a_folder_without_weights_is_told_by_name_and_pickles_are_refused) {
    char path[] = "/tmp/kiln-none-XXXXXX", file[64];
    CHECK(mkdtemp(path));
    struct kx_weights *w;
    struct kn_err err = {0};
    CHECK_INT(kx_weights_open(path, "model", &w, &err), KN_ENOENT);
    CHECK(strstr(err.text, "model.safetensors"));
    snprintf(file, sizeof file, "%s/model.bin", path);
    FILE *f = fopen(file, "w");
    CHECK(f);
    fclose(f);
    CHECK_INT(kx_weights_open(path, "model", &w, &err), KN_EUNSUPPORTED);
    CHECK(strstr(err.text, "pickle"));
    unlink(file);
    rmdir(path);
}

static void write_file(const char *dir, const char *name, const void *data, size_t len) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    CHECK(f && fwrite(data, 1, len, f) == len);
    fclose(f);
}

TEST(an_index_names_parts_beside_it_and_nothing_else) {
    char dir[] = "/tmp/kiln-index-XXXXXX";
    CHECK(mkdtemp(dir));
    static const char *const evil[] = {"../x.safetensors", "/etc/passwd", ".hidden", ""};
    struct kx_weights *w;
    struct kn_err err = {0};
    for (size_t i = 0; i < sizeof evil / sizeof *evil; i++) {
        char index[128];
        int n = snprintf(index, sizeof index, "{\"weight_map\":{\"a\":\"%s\"}}", evil[i]);
        write_file(dir, "m.safetensors.index.json", index, (size_t)n);
        CHECK_INT(kx_weights_open(dir, "m", &w, &err), KN_EPARSE);
        CHECK(strstr(err.text, "not a file name"));
    }
    static const char twice[] = "{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\"}}";
    write_file(dir, "m.safetensors.index.json", twice, sizeof twice - 1);
    size_t len;
    unsigned char *f = file_of("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, &len);
    write_file(dir, "1.safetensors", f, len);
    write_file(dir, "2.safetensors", f, len);
    free(f);
    CHECK_INT(kx_weights_open(dir, "m", &w, &err), KN_EPARSE);
    CHECK(strstr(err.text, "a: appears twice"));
    f = file_of("{\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2, &len);
    write_file(dir, "2.safetensors", f, len);
    free(f);
    CHECK_MSG(!kx_weights_open(dir, "m", &w, &err), "%s", err.text);
    CHECK_INT(kx_weights_count(w), 2);
    kx_weights_close(w);
    char path[128];
    static const char *const made[] = {"m.safetensors.index.json", "1.safetensors", "2.safetensors"};
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, made[i]);
        unlink(path);
    }
    rmdir(dir);
}
