/* What fixes pixels, held against engine_digests.txt: token ids, starting noise, schedules and small pictures. A
 * commit that moves one of them under an unchanged KN_ENGINE_VERSION would mix old and new pictures under the
 * same keys, so it is red here, even where the change is far below the tolerance of the other golden tests.
 *
 * A row's class is a backend class (kiln_engine_backend) for what that class alone decides, and "any" for what
 * every machine computes alike. On a machine whose class has no rows those are skipped; what is nearly right is
 * then still seen by the comparisons with diffusers. A row's name holds the digest of the files that it was made
 * from: another model is another row, and no other engine.
 *
 * KILN_WRITE_DIGESTS=1 writes the rows of this machine. It never writes another digest in the place of a recorded
 * one unless the version has changed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/fs.h"
#include "base/hash.h"
#include "kernels/io/config.h"
#include "kernels/io/json.h"
#include "kernels/kiln.h"
#include "kernels/samplers/noise.h"
#include "kernels/samplers/schedule.h"
#include "kernels/text/tokenizer.h"
#include "tests/unit/check.h"

#define TABLE KILN_GOLDEN_DIR "/engine_digests.txt"
#define AGAIN "KILN_WRITE_DIGESTS=1 test-golden-digests"
#define ROWS_MAX 1024
#define FILE_BYTES_MAX (1u << 20)
#define ANY "any"

struct row {
    char kind[16], class[64], hex[KN_SHA256_HEX], name[160];
};

struct rows {
    struct row v[ROWS_MAX];
    size_t count;
};

static struct rows recorded, computed; /* computed: of the test that runs */
static char recorded_engine[32];
static char own_class[64]; /* of this machine's CPU */

/* ---- the table ---- */

static bool is_writing(void) {
    return getenv("KILN_WRITE_DIGESTS") != NULL;
}

int check_before(void) {
    struct kn_err err = {0};
    struct kiln_engine *e;
    char line[512], *nl;
    if (kiln_engine_create(&(struct kiln_engine_options){.threads = 1}, &e, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    snprintf(own_class, sizeof own_class, "%s", kiln_engine_backend(e));
    kiln_engine_destroy(e);
    FILE *f = fopen(TABLE, "r");
    while (f && fgets(line, sizeof line, f)) {
        struct row *r = &recorded.v[recorded.count];
        if ((nl = strchr(line, '\n'))) *nl = 0;
        if (!line[0] || line[0] == '#' || sscanf(line, "engine %31s", recorded_engine) == 1) continue;
        if (recorded.count == ROWS_MAX ||
            sscanf(line, "%15s %63s %64s %159[^\n]", r->kind, r->class, r->hex, r->name) != 4) {
            fprintf(stderr, TABLE ": not a row: %s\n", line);
            fclose(f);
            return 1;
        }
        recorded.count++;
    }
    if (f) fclose(f);
    if (is_writing() && strcmp(recorded_engine, KN_ENGINE_VERSION)) recorded.count = 0; /* begins anew */
    return 0;
}

static const struct row *find(const struct rows *in, const struct row *r) {
    for (size_t i = 0; i < in->count; i++)
        if (!strcmp(in->v[i].kind, r->kind) && !strcmp(in->v[i].name, r->name) &&
            !strcmp(in->v[i].class, r->class))
            return &in->v[i];
    return NULL;
}

static bool has_name(const struct rows *in, const struct row *r) {
    for (size_t i = 0; i < in->count; i++)
        if (!strcmp(in->v[i].kind, r->kind) && !strcmp(in->v[i].name, r->name)) return true;
    return false;
}

static bool has_class(const struct rows *in, const char *class) {
    for (size_t i = 0; i < in->count; i++)
        if (!strcmp(in->v[i].class, class)) return true;
    return false;
}

static bool is_of_this_machine(const struct row *r) {
    return !strcmp(r->class, ANY) || !strcmp(r->class, own_class);
}

/* Ends `h` into a row of the running test. */
static void add(const char *kind, const char *class, const char *name, struct kn_sha256 *h) {
    uint8_t digest[KN_SHA256_BYTES];
    CHECK(computed.count < ROWS_MAX);
    struct row *r = &computed.v[computed.count];
    snprintf(r->kind, sizeof r->kind, "%s", kind);
    snprintf(r->class, sizeof r->class, "%s", class);
    snprintf(r->name, sizeof r->name, "%s", name);
    kn_sha256_final(h, digest);
    kn_hex(digest, sizeof digest, r->hex);
    CHECK_MSG(!find(&computed, r), "%s: two rows of that name", name);
    computed.count++;
}

/* Rows of this kind that other machines wrote stay as they are, if they still are of something. */
static void write_kind(const char *kind) {
    static const char *const kinds[] = {"tokens", "noise", "schedules", "pictures"};
    static struct rows next;
    struct kn_buf b;
    struct kn_err err = {0};
    next.count = 0;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        bool is_new = !strcmp(kinds[k], kind);
        for (size_t i = 0; i < recorded.count; i++) {
            const struct row *r = &recorded.v[i];
            if (strcmp(r->kind, kinds[k])) continue;
            if (is_new && (is_of_this_machine(r) || !has_name(&computed, r))) continue;
            next.v[next.count++] = *r;
        }
        for (size_t i = 0; is_new && i < computed.count; i++) {
            CHECK(next.count < ROWS_MAX);
            next.v[next.count++] = computed.v[i];
        }
    }
    recorded = next;
    kn_buf_init(&b, FILE_BYTES_MAX);
    CHECK(!kn_buf_appends(&b,
                          "# What the engine of this version computes (digests_test.c): kind, backend class, "
                          "SHA-256, and of what.\n# Made by: " AGAIN "\n"));
    CHECK(!kn_buf_appendf(&b, "engine %s\n", KN_ENGINE_VERSION));
    for (size_t i = 0; i < recorded.count; i++) {
        const struct row *r = &recorded.v[i];
        CHECK(!kn_buf_appendf(&b, "%s %s %s %s\n", r->kind, r->class, r->hex, r->name));
    }
    CHECK_MSG(!kn_fs_replace(TABLE, b.data, b.len, false, &err), "%s", err.text);
    kn_buf_fini(&b);
}

/* Holds the rows that the test computed against those of the table. */
static void compare(const char *kind) {
    size_t moved = 0, missing = 0, gone = 0, skipped = 0;
    bool known = is_writing() || has_class(&recorded, own_class);
    if (!is_writing())
        CHECK_MSG(!strcmp(recorded_engine, KN_ENGINE_VERSION),
                  "engine_digests.txt is of the engine \"%s\", this one is %s: record it anew with " AGAIN,
                  recorded_engine, KN_ENGINE_VERSION);
    for (size_t i = 0; i < computed.count; i++) {
        const struct row *r = &computed.v[i], *old = find(&recorded, r);
        if (old && strcmp(old->hex, r->hex)) {
            fprintf(stderr, "%s %s (%s): %s, recorded is %s\n", r->kind, r->name, r->class, r->hex, old->hex);
            moved++;
        } else if (!old && !known && !strcmp(r->class, own_class)) {
            skipped++;
        } else if (!old && !is_writing()) {
            fprintf(stderr, "%s %s (%s): not recorded\n", r->kind, r->name, r->class);
            missing++;
        }
    }
    for (size_t i = 0; i < recorded.count && !is_writing(); i++) {
        const struct row *r = &recorded.v[i];
        if (strcmp(r->kind, kind) || has_name(&computed, r)) continue;
        fprintf(stderr, "%s %s (%s): recorded, and no longer computed\n", r->kind, r->name, r->class);
        gone++;
    }
    CHECK_MSG(!moved, "pixels moved: raise KN_ENGINE_VERSION in base/spec.h and record anew with " AGAIN);
    CHECK_MSG(!missing && !gone, "%zu rows are missing and %zu are of nothing: record them with " AGAIN,
              missing, gone);
    if (is_writing()) write_kind(kind);
    printf("%s: %zu rows alike\n", kind, computed.count - skipped);
    if (skipped)
        SKIP("%zu rows of %s: engine_digests.txt knows nothing of this machine's class %s; " AGAIN
             " records it, on a tree whose pixels have not moved",
             skipped, kind, own_class);
}

static struct kn_sha256 *begin(void) {
    struct kn_sha256 *h = kn_sha256_create();
    CHECK(h);
    return h;
}

/* ---- the folders ---- */

struct folder {
    const char *name, *path;
    bool xl;
};

static const struct folder folders[] = {
    {"tiny", KILN_MODELS_DIR "/tiny", false},         {"sd1", KILN_GOLDEN_DIR "/pipelines/sd1", false},
    {"sd2", KILN_GOLDEN_DIR "/pipelines/sd2", false}, {"sdxl", KILN_GOLDEN_DIR "/pipelines/sdxl", true},
    {"v8", KILN_GOLDEN_DIR "/pipelines/v8", false},   {"wide", KILN_GOLDEN_DIR "/pipelines/wide", false},
};
#define FOLDERS (sizeof folders / sizeof folders[0])

/* "sd1@3fa1c277": the name and the folder's hash. */
static void name_folder(const struct folder *f, struct kn_model_info *info, char out[64]) {
    struct kn_err err = {0};
    char hex[9];
    CHECK_MSG(!kiln_model_describe(f->path, NULL, info, &err), "%s", err.text);
    kn_hex(info->sha256, 4, hex);
    snprintf(out, 64, "%s@%s", f->name, hex);
}

/* ---- texts ---- */

TEST(token_ids_stay_under_one_version) {
    static const char *const texts[] = {
        "",
        "a red circle above a blue square",
        "A painting of the castle, don't! They'll say I've said he'd be what's 'm and 're.",
        "café caf\x65\xcc\x81 \xef\xac\x81sh \xe2\x84\xab \xc3\x85", /* composed, decomposed, a ligature, Å twice */
        "ÀÉÎ ΑΒΓΣς İstanbul straße ǅ",
        "猫 日本語 한국어 עברית हिन्दी",
        "1234 3.14 ² ½ Ⅷ ٣",
        "🙂👩‍👩‍👧 !!!??? -- __ a_b c-d #hash $5 50% <b> \"q\"",
        " \t two  spaces\n lines\u00a0nbsp\u3000wide \u200bzero ",
        "before <|startoftext|> between <|endoftext|> behind",
        "a cat a cat a cat a cat a cat a cat a cat a cat a cat a cat a cat a cat a cat a cat a cat a cat a cat a cat "
        "a cat a cat a cat a cat a cat a cat a cat a cat a cat a cat a cat a cat a cat a cat a cat a cat a cat a cat "
        "a cat a cat a cat a cat a cat",
    };
    enum { LENGTH_MAX = 77 };
    computed.count = 0;
    for (size_t i = 0; i < FOLDERS; i++)
        for (int which = 0; which < (folders[i].xl ? 2 : 1); which++) {
            struct kn_model_info info;
            struct kx_tokenizer *t;
            struct kn_err err = {0};
            struct kn_sha256 *h = begin();
            char path[1024], name[64], row[128];
            int32_t ids[LENGTH_MAX];
            name_folder(&folders[i], &info, name);
            snprintf(path, sizeof path, "%s/tokenizer%s", folders[i].path, which ? "_2" : "");
            CHECK_MSG(!kx_tokenizer_open(path, LENGTH_MAX, &t, &err), "%s", err.text);
            for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
                CHECK_MSG(!kx_tokenizer_encode(t, texts[k], ids, &err), "%s", err.text);
                kn_sha256_update(h, ids, (size_t)kx_tokenizer_length(t) * sizeof *ids);
            }
            kx_tokenizer_close(t);
            snprintf(row, sizeof row, "%s tokenizer%s", name, which ? "_2" : "");
            add("tokens", ANY, row, h);
        }
    compare("tokens");
}

/* ---- noise ---- */

/* The bits are the class's, since libm's logarithm and cosine have other last bits with other instructions. What
 * every machine has alike is each value's place on a grid. No value of these seeds lies so near to a border between
 * two places that its last bits would decide; that is checked when they are recorded. */
TEST(starting_noise_stays_under_one_version) {
    enum { GRID = 16, VALUES_MAX = 4 * 16 * 16 };
    static const struct {
        uint64_t seed;
        size_t count, again;
    } draws[] = {{0, 4 * 8 * 8, 0},
                 {7, 4 * 16 * 16, 4 * 16 * 16},
                 {1099511627779u, 3 * 5 * 7, 0},
                 {UINT64_MAX, 16, 16 * 8 + 3},
                 {42, 15, 2}};
    static float v[2 * VALUES_MAX];
    computed.count = 0;
    for (size_t i = 0; i < sizeof draws / sizeof *draws; i++) {
        size_t n = draws[i].count, again = draws[i].again;
        struct kn_sha256 *bits = begin(), *places = begin();
        struct kx_noise g;
        char row[128];
        kx_noise_init(&g, draws[i].seed);
        kx_noise_normal(&g, v, n);
        if (again) kx_noise_normal(&g, v + n, again); /* as a sampler that draws at every step */
        for (size_t k = 0; k < n + again; k++) {
            double at = (double)v[k] * GRID;
            int32_t place = (int32_t)lround(at);
            CHECK_MSG(!is_writing() || fabs(fabs(at - place) - 0.5) > 1e-5 * fmax(1, fabs(at)),
                      "value %zu of seed %llu lies near a border: take another seed", k,
                      (unsigned long long)draws[i].seed);
            kn_sha256_update(places, &place, sizeof place);
        }
        kn_sha256_update(bits, v, (n + again) * sizeof *v);
        snprintf(row, sizeof row, "seed %llu, %zu and %zu values", (unsigned long long)draws[i].seed, n,
                 again);
        add("noise", ANY, row, places);
        add("noise", own_class, row, bits);
    }
    compare("noise");
}

/* ---- schedules ---- */

/* The coefficients' first digits: what rounding does to the rest differs by library. */
static void add_step(struct kn_sha256 *h, const struct kx_step *k) {
    char line[512];
    int n = snprintf(line, sizeof line, "%.3g %.3g %.3g %.3g %.3g %.3g %.3g %.3g %.3g %.3g %d %d",
                     (double)k->timestep, (double)k->in_scale, (double)k->dx, (double)k->dm, (double)k->clip,
                     (double)k->cx, (double)k->cs, (double)k->cd, (double)k->cm, (double)k->cn, k->save_x,
                     k->store);
    kn_sha256_update(h, line, (size_t)n);
    for (int i = 0; i < KX_HISTORY_MAX; i++) {
        n = snprintf(line, sizeof line, " %.3g", (double)k->ch[i]);
        kn_sha256_update(h, line, (size_t)n);
    }
}

TEST(schedules_stay_under_one_version) {
    struct kx_json j;
    struct kn_err err = {0};
    CHECK_MSG(!kx_json_load(KILN_GOLDEN_DIR "/schedules.json", &j, &err), "%s", err.text);
    json_object *configs = kx_json_get(&j, "configs");
    const char *text = json_object_to_json_string_ext(configs, JSON_C_TO_STRING_PLAIN);
    uint8_t digest[KN_SHA256_BYTES];
    char hex[9];
    kn_sha256(text, strlen(text), digest);
    kn_hex(digest, 4, hex);
    computed.count = 0;
    for (int i = 0; i < KN_SAMPLER_COUNT; i++)
        for (int schedule = KN_SCHEDULE_NORMAL; schedule <= KN_SCHEDULE_KARRAS; schedule++) {
            if (!kn_schedule_fits(kn_samplers[i], (enum kn_schedule)schedule)) continue;
            struct kn_sha256 *h = begin();
            char row[128];
            json_object_object_foreach(configs, name, config) {
                struct kx_json one = {.file = name, .o = config};
                struct kx_scheduler_config cfg;
                struct kx_schedule s;
                CHECK_MSG(!kx_config_scheduler(&one, &cfg, &err), "%s", err.text);
                for (int pipeline = 0; pipeline < 2;
                     pipeline++) { /* SDXL's, and the other, which corrects it */
                    cfg.pipeline = pipeline;
                    kn_sha256_update(h, name, strlen(name) + 1);
                    if (kx_schedule_create(&cfg, kn_samplers[i], (enum kn_schedule)schedule, 20, &s, &err))
                        continue; /* which of them are refused is in the digest, too */
                    for (int k = 0; k < s.count; k++) add_step(h, &s.v[k]);
                    kx_schedule_fini(&s);
                }
            }
            snprintf(row, sizeof row, "configs@%s %s, %s", hex, kn_sampler_name(kn_samplers[i]),
                     kn_schedule_name((enum kn_schedule)schedule));
            add("schedules", ANY, row, h);
        }
    json_object_put(j.o);
    compare("schedules");
}

/* ---- pictures ---- */

static int take_pixels(void *ctx, const struct kiln_image *im) {
    if (im->status) return 1;
    kn_sha256_update(ctx, im->rgb, (size_t)im->task->width * im->task->height * 3);
    return 0;
}

/* Two pictures, with guidance and without, for each schedule that the sampler has. */
static void render(struct kiln_model *m, const struct kn_model_info *info, enum kn_sampler sampler,
                   struct kn_sha256 *h) {
    static char prompt[] = "A red circle above a blue square, don't!", negative[] = "dark night", none[] = "";
    for (int schedule = KN_SCHEDULE_NORMAL; schedule <= KN_SCHEDULE_KARRAS; schedule++) {
        if (!kn_schedule_fits(sampler, (enum kn_schedule)schedule)) continue;
        struct kn_task t[2] = {{.prompt = prompt,
                                .negative = negative,
                                .seed = 7,
                                .cfg = 5,
                                .steps = 4,
                                .width = 2 * info->size_multiple,
                                .height = 3 * info->size_multiple,
                                .sampler = sampler,
                                .schedule = (enum kn_schedule)schedule,
                                .set = KN_SET_ALL}};
        t[1] = t[0];
        t[1].cfg = 1;
        t[1].negative = none;
        t[1].seed = 1099511627779u;
        struct kn_err err = {0};
        struct kiln_callbacks cb = {.ctx = h, .image = take_pixels};
        CHECK_MSG(!kiln_render(m, t, 2, &cb, &err), "%s", err.text);
    }
}

static const struct {
    const char *folder, *file;
} loras[] = {{"sd1", "kohya_sd1.safetensors"},
             {"sd1", "diffusers_metadata.safetensors"},
             {"sd1", "peft_unet/adapter_model.safetensors"},
             {"sdxl", "kohya_sdxl.safetensors"}};

TEST(pictures_stay_under_one_version) {
    struct kiln_engine *e;
    struct kn_err err = {0};
    computed.count = 0;
    CHECK_MSG(!kiln_engine_create(&(struct kiln_engine_options){.threads = 2}, &e, &err), "%s", err.text);
    CHECK_STR(kiln_engine_backend(e), own_class);
    for (size_t i = 0; i < FOLDERS; i++) {
        struct kn_model_info info;
        struct kiln_model *m;
        char name[64], row[160], path[1024];
        name_folder(&folders[i], &info, name);
        CHECK_MSG(!kiln_model_load(e, folders[i].path, &m, &err), "%s", err.text);
        for (int s = 0; s < KN_SAMPLER_COUNT; s++) {
            struct kn_sha256 *h = begin();
            render(m, &info, kn_samplers[s], h);
            snprintf(row, sizeof row, "%s %s", name, kn_sampler_name(kn_samplers[s]));
            add("pictures", own_class, row, h);
        }
        for (size_t k = 0; k < sizeof loras / sizeof *loras; k++) {
            if (strcmp(loras[k].folder, folders[i].name)) continue;
            struct kn_sha256 *h = begin();
            snprintf(path, sizeof path, KILN_GOLDEN_DIR "/loras/%s", loras[k].file);
            CHECK_MSG(!kiln_model_set_loras(m, &(struct kiln_lora){path, 0.75f}, 1, &err), "%s", err.text);
            render(m, &info, KN_SAMPLER_EULER, h);
            snprintf(row, sizeof row, "%s Euler with %s", name, loras[k].file);
            add("pictures", own_class, row, h);
        }
        kiln_model_destroy(m);
    }
    kiln_engine_destroy(e);
    compare("pictures");
}
