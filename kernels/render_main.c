/* kiln-render: pictures from a model's folder with no farm. Flags and wiring; the work is in the engine
 * (kiln.h) and in base's reader of prompt files. One thread, but for the engine's own. Exit: 0 all done, 1
 * bad usage or input (nothing was started), 2 some images failed, 130 interrupted. */
#include <inttypes.h>
#include <json-c/json.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/options.h"
#include "base/prompts.h"
#include "base/settings.h"
#include "kernels/io/safetensors.h"
#include "kernels/kiln.h"

enum { EXIT_USAGE = 1, EXIT_SOME_FAILED = 2, EXIT_INTERRUPTED = 130 };

struct render_settings {
    const char *model, *prompt, *prompts, *output, *dump, *cache;
    enum kn_input_format format;
    struct kn_task settings; /* its strings are borrowed from argv */
    uint32_t images;
    int batch, threads;
    struct kiln_engine_options engine;
    struct kiln_lora loras[KILN_LORAS_MAX]; /* their paths are argv's, cut */
    int lora_count;
    bool json, describe, quiet, calibrate, version, help;
};

static volatile sig_atomic_t interrupted;

static void on_signal(int sig) {
    (void)sig;
    interrupted = 1;
}

static const char usage_head[] =
    "usage: kiln-render --model DIR --prompt TEXT [options] -o FILE.png\n"
    "       kiln-render --model DIR --prompts FILE [options] -o DIR\n"
    "       kiln-render --model DIR --device cuda --calibrate FILE\n"
    "       kiln-render --model DIR --describe\n"
    "\n"
    "Renders pictures with a diffusion model's folder (diffusers layout, safetensors), in\n"
    "this process.\n"
    "\n";

static const char usage_tail[] =
    "\n"
    "What is not given comes from the model's folder (kiln.json, else its scheduler and\n"
    "native size), 20 steps, guidance 7.\n"
    "\n"
    "examples:\n"
    "  kiln-render --model models/tiny -p \"a red circle above a blue square\" --seed 7 \\\n"
    "      -o circle.png\n"
    "  kiln-render --model ~/sd15 --prompts prompts.txt --steps 30 --sampler \"dpm++ 2m\" \\\n"
    "      --schedule karras -o out\n"
    "  kiln-render --model ~/sd15 -p \"a lighthouse\" --seed 1 --images 4 -o out\n";

/* ---- options ---- */

static int fail(const char *fmt, ...) KN_PRINTF(1, 2);
static int fail(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fputs("kiln-render: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    return EXIT_USAGE;
}

static int read_seed(void *task, char *value, struct kn_err *err) {
    struct kn_task *t = task;
    t->set |= KN_SET_SEED;
    return kn_option_number(value, 0, UINT64_MAX, &t->seed, err);
}

/* FILE or FILE:X; a colon that no number follows is the name's. */
static int read_lora(void *options, char *arg, struct kn_err *err) {
    struct render_settings *o = options;
    if (o->lora_count == KILN_LORAS_MAX) return kn_err_set(err, KN_ELIMIT, "more than %d", KILN_LORAS_MAX);
    struct kiln_lora *l = &o->loras[o->lora_count++];
    *l = (struct kiln_lora){arg, 1};
    char *colon = strrchr(arg, ':'), *end;
    if (!colon || !colon[1]) return 0;
    float scale = strtof(colon + 1, &end);
    if (*end) return 0;
    if (!isfinite(scale) || fabsf(scale) > 100)
        return kn_err_set(err, KN_EINVAL, "%s is not between -100 and 100", colon + 1);
    *colon = 0;
    l->scale = scale;
    return 0;
}

static int read_calibrate(void *options, char *file, struct kn_err *err) {
    struct render_settings *o = options;
    (void)err;
    o->prompts = file;
    o->calibrate = true;
    return 0;
}

static int read_device(void *engine, char *arg, struct kn_err *err) {
    struct kiln_engine_options *out = engine;
    uint64_t n = 0;
    if (!strcmp(arg, "cpu")) {
        out->device = KILN_DEVICE_CPU;
        return 0;
    }
    if (strncmp(arg, "cuda", 4) ||
        (arg[4] && (arg[4] != ':' || kn_option_number(arg + 5, 0, 1023, &n, NULL))))
        return kn_err_set(err, KN_EINVAL, "%.64s is none of cpu, cuda, cuda:N", arg);
    out->device = KILN_DEVICE_CUDA;
    out->device_index = (int)n;
    return 0;
}

static const char *const precisions[] = {"auto", "f16", "bf16", "fp8", NULL}; /* as enum kiln_precision */

#define INTO(member) KN_OPTION_INTO(struct render_settings, member)
#define SETTING(function) KN_OPTION_READ(struct render_settings, settings, function)
#define WHOLE(function) .kind = KN_OPTION_OWN, .read = (function) /* is given all of the options */

static const struct kn_option option_table[] = {
    {"model", 0, "DIR", 1, "the model's folder", INTO(model)},
    {"prompt", 'p', "TEXT", 1, "one prompt", INTO(prompt)},
    {"prompts", 0, "FILE", 1, "many: .txt (a prompt a line), .jsonl, .json, .csv, .tsv; - is standard input",
     INTO(prompts)},
    {"input-format", 0, "F", 1, "txt, jsonl, json, csv or tsv (for - and other endings)",
     KN_OPTION_READ(struct render_settings, format, kn_setting_input_format)},
    {"negative", 0, "TEXT", 1, "what the picture should not show", SETTING(kn_setting_negative)},
    {"seed", 0, "N", 1, "seed; drawn and printed when not given", SETTING(read_seed)},
    {"images", 0, "N", 1, "pictures a prompt, of seeds N, N+1, …", INTO(images), .min = 1,
     .max = KN_IMAGES_MAX},
    {"steps", 0, "N", 1, "denoising steps", SETTING(kn_setting_steps)},
    {"sampler", 0, "NAME", 1, KN_SAMPLER_LIST, SETTING(kn_setting_sampler)},
    {"schedule", 0, "NAME", 1, "normal, karras", SETTING(kn_setting_schedule)},
    {"cfg", 0, "X", 1, "guidance; 1 and below is none", SETTING(kn_setting_cfg)},
    {"size", 0, "WxH", 1, "pixels", SETTING(kn_setting_size)},
    {"output", 'o', "PATH", 1, "the file, or with --prompts or --images the folder (000000.png, …)",
     INTO(output)},
    {"dump", 0, "FILE", 1, "every intermediate tensor of one picture, as safetensors", INTO(dump)},
    {"batch", 0, "N", 1,
     "pictures rendered at once (default: what the engine deems best; never changes a picture)", INTO(batch),
     .min = 1, .max = KN_SHARD_TASKS_MAX},
    {"device", 0, "WHICH", 1, "cpu (default), cuda, or cuda:N for the N-th GPU",
     KN_OPTION_READ(struct render_settings, engine, read_device)},
    {"precision", 0, "TYPE", 1, "GPU: auto (default), f16, bf16, or fp8 (after --calibrate)",
     KN_OPTION_CHOICE_INTO(struct render_settings, engine.precision, precisions)},
    {"calibrate", 0, "FILE", 1,
     "GPU: renders these prompts, writes the scales that --precision fp8 needs to the model's folder, "
     "renders them again with those and tells how far apart the pictures are",
     WHOLE(read_calibrate)},
    {"fastest", 0, NULL, 1, "GPU: a picture may depend on its minibatch, for speed", INTO(engine.fastest)},
    {"lora", 0, "FILE[:X]", 1, "a LoRA, X times as strong as it was trained; may be given again",
     WHOLE(read_lora)},
    {"threads", 0, "N", 1, "threads (default: all cores)", INTO(threads), .min = 1, .max = 1024},
    {"cache", 0, "DIR", 1,
     "where the model's hash is remembered (default: $XDG_CACHE_HOME/kiln or ~/.cache/kiln)", INTO(cache)},
    {"describe", 0, NULL, 1, "prints what the folder says of itself, as JSON, and ends", INTO(describe)},
    {"json", 0, NULL, 1, "a line of JSON with the figures at the end, on standard output", INTO(json)},
    {"quiet", 'q', NULL, 1, "no progress on standard error", INTO(quiet)},
    {"version", 0, NULL, 1, "prints the version", KN_OPTION_STOP_INTO(struct render_settings, version)},
    {"help", 0, NULL, 1, "this text", KN_OPTION_STOP_INTO(struct render_settings, help)},
};

static const struct kn_options command_line = {"kiln-render", option_table,
                                               sizeof option_table / sizeof option_table[0], 1};

/* 0, or an exit status; -1: done, leave with 0. */
static int parse_options(int argc, char **argv, struct render_settings *o) {
    struct kn_err err = {0};
    int operands, rc = kn_options_parse(&command_line, argc, argv, o, &operands, &err);
    if (rc < 0) return fail("%s", err.text);
    if (o->version) puts("kiln-render " KILN_VERSION);
    if (o->help) {
        fputs(usage_head, stdout);
        kn_options_help(&command_line, stdout);
        fputs(usage_tail, stdout);
    }
    if (rc == 1) return -1;
    if (operands > 0) return fail("%s: what is it? A prompt goes behind -p", argv[1]);
    if (!o->model) return fail("--model is missing; kiln-render --help");
    if (o->describe) return 0;
    if (!o->prompt == !o->prompts) return fail("one of --prompt and --prompts is needed");
    if (o->calibrate && (o->output || o->dump || o->engine.device != KILN_DEVICE_CUDA))
        return fail("--calibrate goes with --device cuda, and without -o");
    if (!o->output && !o->dump && !o->calibrate) return fail("-o is missing");
    if (o->dump && (o->prompts || o->images > 1))
        return fail("--dump is of one picture: --prompt, and no --images");
    return 0;
}

/* ---- describe ---- */

/* A figure with as many digits as it deserves. */
static json_object *figure(double v) {
    char text[32];
    snprintf(text, sizeof text, "%.6g", v);
    return json_object_new_double_s(v, text);
}

static int describe(const struct kn_model_info *info) {
    char hex[KN_SHA256_HEX], size[32];
    kn_hex(info->sha256, sizeof info->sha256, hex);
    snprintf(size, sizeof size, "%ux%u", info->defaults.width, info->defaults.height);
    json_object *o = json_object_new_object(), *d = json_object_new_object();
    json_object_object_add(o, "name", json_object_new_string(info->name));
    json_object_object_add(o, "sha256", json_object_new_string(hex));
    json_object_object_add(o, "size_multiple", json_object_new_int((int)info->size_multiple));
    if (info->scheduler[0]) json_object_object_add(o, "scheduler", json_object_new_string(info->scheduler));
    json_object_object_add(
        d, "sampler",
        info->defaults.sampler ? json_object_new_string(kn_sampler_name(info->defaults.sampler)) : NULL);
    json_object_object_add(d, "schedule", json_object_new_string(kn_schedule_name(info->defaults.schedule)));
    json_object_object_add(d, "karras", json_object_new_boolean(info->defaults.karras));
    json_object_object_add(d, "steps", json_object_new_int((int)info->defaults.steps));
    json_object_object_add(d, "cfg", figure((double)info->defaults.cfg));
    json_object_object_add(d, "size", json_object_new_string(size));
    json_object_object_add(o, "defaults", d);
    if (info->memory_weights) { /* of a CPU, in bytes: what is enforced */
        json_object *m = json_object_new_object();
        json_object_object_add(m, "weights", json_object_new_uint64(info->memory_weights));
        json_object_object_add(m, "image", json_object_new_uint64(info->memory_image));
        json_object_object_add(o, "memory", m);
    }
    puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED));
    json_object_put(o);
    return 0;
}

/* ---- rendering ---- */

struct rendering {
    const struct render_settings *o;
    const struct kn_model_info *info;
    struct kx_dump *dump;
    bool folder;   /* the output is one */
    size_t offset; /* index of the call's first task */
    size_t total, done, failed;
    uint64_t begun_us, step_us, steps,
        last_us; /* last_us: when the running step began; 0: text or decoding are running */
    bool terminal;
    struct kn_err err; /* what went wrong in a callback */
};

static void progress(const struct rendering *r, int step, int steps) {
    if (!r->terminal) return;
    fprintf(stderr, "\r%zu of %zu, step %d of %d ", r->done, r->total, step, steps);
}

static int on_step(void *ctx, int step, int steps) {
    struct rendering *r = ctx;
    uint64_t now = kn_clock_us();
    if (step > 1) { /* the first also holds the text's encoding */
        r->step_us += now - r->last_us;
        r->steps++;
    }
    r->last_us = now;
    progress(r, step, steps);
    return interrupted;
}

static int write_picture(struct rendering *r, const struct kiln_image *im) {
    char path[KN_PATH_MAX], name[32];
    struct kn_buf text, png;
    kn_buf_init(&text, 1u << 20);
    kn_buf_init(&png, KN_IMAGE_BYTES_MAX);
    int rc = kn_task_parameters(im->task, r->info, "kiln " KILN_VERSION, &text);
    if (rc) kn_err_set(&r->err, rc, "parameters: %s", kn_err_words(rc));
    if (!rc) rc = kiln_png_encode(im->rgb, im->task->width, im->task->height, text.data, &png, &r->err);
    if (!rc && r->folder) {
        snprintf(name, sizeof name, "%06zu.png", r->offset + (size_t)im->index);
        rc = kn_fs_join(path, sizeof path, r->o->output, name);
        if (rc) kn_err_set(&r->err, rc, "%s: path too long", r->o->output);
    } else if (!rc) {
        snprintf(path, sizeof path, "%s", r->o->output);
    }
    if (!rc) rc = kn_fs_replace(path, png.data, png.len, false, &r->err);
    kn_buf_fini(&text);
    kn_buf_fini(&png);
    return rc;
}

static int on_image(void *ctx, const struct kiln_image *im) {
    struct rendering *r = ctx;
    if (im->status) {
        r->failed++;
        fprintf(stderr, "%skiln-render: image %zu: %s at step %d\n", r->terminal ? "\r" : "",
                r->offset + (size_t)im->index, kn_err_words(im->status), im->step);
        return interrupted;
    }
    if (im->flat && !r->o->quiet)
        fprintf(stderr, "%skiln-render: image %zu: every pixel has the same colour\n",
                r->terminal ? "\r" : "", r->offset + (size_t)im->index);
    if (r->o->output && write_picture(r, im)) return 1;
    r->done++;
    progress(r, 0, (int)im->task->steps);
    return interrupted;
}

static void on_dump(void *ctx, const char *name, const void *data, const int64_t *shape, int ndim) {
    struct rendering *r = ctx;
    int rc = kx_dump_add(r->dump, name, strncmp(name, "input_ids", 9) ? KX_F32 : KX_I32, shape, ndim, data);
    if (rc && !r->err.code) kn_err_set(&r->err, rc, "%s: %s: %s", r->o->dump, name, kn_err_words(rc));
}

static bool same_batch(const struct kn_task *a, const struct kn_task *b) {
    return a->width == b->width && a->height == b->height && a->sampler == b->sampler &&
           a->schedule == b->schedule && a->steps == b->steps;
}

/* Neighbours that can share a batch go together; order is kept, so that picture n is prompt n. */
static int render_all(struct rendering *r, struct kiln_model *m, const struct kn_tasks *ts,
                      struct kn_err *err) {
    struct kiln_callbacks cb = {
        .ctx = r, .step = on_step, .image = on_image, .dump = r->dump ? on_dump : NULL};
    int rc = 0;
    for (size_t i = 0, n; i < ts->count && !rc; i += n) {
        int max = r->o->batch ? r->o->batch : kiln_model_minibatch_max(m, ts->v[i].width, ts->v[i].height);
        for (n = 1; n < (size_t)max && i + n < ts->count && same_batch(&ts->v[i], &ts->v[i + n]);) n++;
        r->offset = i;
        rc = kiln_render(m, ts->v + i, (int)n, &cb, err);
    }
    if (r->terminal) fputc('\n', stderr);
    if (rc == KN_ECANCELED && r->err.code) *err = r->err;
    if (!rc && r->err.code) {
        *err = r->err;
        rc = err->code;
    }
    return rc;
}

/* The tasks, resolved. *drawn_seed: the one that was drawn for them, 0 when every task had its own. */
static int read_tasks(const struct render_settings *o, const struct kn_model_info *info, struct kn_tasks *ts,
                      uint64_t *drawn_seed, struct kn_err *err) {
    int rc = o->prompts ? kn_prompts_read(o->prompts, o->format, false, ts, err)
                        : kn_tasks_add(ts, o->prompt, err);
    uint64_t seed = o->settings.seed;
    struct kn_task settings = o->settings;
    settings.set &= ~(unsigned)KN_SET_SEED; /* the first seed of each prompt, see kn_tasks_expand */
    if (!rc) rc = kn_task_check(&settings, err);
    if (!rc) rc = kn_tasks_apply(ts, &settings, err);
    if (!rc && !(o->settings.set & KN_SET_SEED)) {
        uint32_t drawn;
        bool needed = false;
        for (size_t i = 0; i < ts->count; i++) needed |= !(ts->v[i].set & KN_SET_SEED);
        if (getrandom(&drawn, sizeof drawn, 0) != sizeof drawn) drawn = (uint32_t)kn_wall_ms();
        seed = drawn;
        if (needed) *drawn_seed = seed;
    }
    if (!rc) rc = kn_tasks_expand(ts, o->images, seed, err);
    for (size_t i = 0; i < ts->count && !rc; i++) {
        rc = kn_task_resolve(&ts->v[i], info, err);
        if (rc && ts->count > 1) kn_err_prefix(err, "prompt %zu", i + 1);
    }
    if (!rc && !ts->count) rc = kn_err_set(err, KN_EINVAL, "%s: no prompts", o->prompts);
    return rc;
}

static const char *cache_dir(const struct render_settings *o, char *out, size_t max) {
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (o->cache) return o->cache;
    if (xdg && xdg[0] == '/')
        snprintf(out, max, "%s/kiln", xdg);
    else if (home && home[0] == '/')
        snprintf(out, max, "%s/.cache/kiln", home);
    else
        return NULL;
    return out;
}

static void print_figures(const struct rendering *r, struct kiln_engine *e, double load_s, double seconds) {
    json_object *o = json_object_new_object();
    json_object_object_add(o, "images", json_object_new_int64((int64_t)r->done));
    json_object_object_add(o, "failed", json_object_new_int64((int64_t)r->failed));
    json_object_object_add(o, "seconds", figure(seconds));
    json_object_object_add(o, "images_per_s", figure(seconds > 0 ? (double)r->done / seconds : 0));
    json_object_object_add(o, "load_s", figure(load_s));
    json_object_object_add(o, "step_ms", figure(r->steps ? (double)r->step_us / 1000 / (double)r->steps : 0));
    struct kiln_busy busy;
    kiln_engine_busy(e, &busy);
    if (busy.span_ms > 0) json_object_object_add(o, "idle_share", figure(1 - busy.busy_ms / busy.span_ms));
    json_object_object_add(o, "backend", json_object_new_string(kiln_engine_backend(e)));
    json_object_object_add(o, "device", json_object_new_string(kiln_engine_device(e)));
    puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
    json_object_put(o);
}

/* ---- calibration ---- */

struct kept {
    uint8_t **rgb; /* owned; one a picture, NULL where it failed */
    size_t total, count;
    bool second;
    double sum_db, least_db;
    size_t compared;
};

static double decibels(const uint8_t *a, const uint8_t *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return 10 * log10(255.0 * 255.0 * (double)n / (sum > 0.25 ? sum : 0.25));
}

static int keep(void *ctx, const struct kiln_image *im) {
    struct kept *k = ctx;
    size_t bytes = (size_t)im->task->width * im->task->height * 3, at = k->count++;
    if (at >= k->total || interrupted) return 1;
    if (!im->rgb) return 0;
    if (!k->second) {
        if ((k->rgb[at] = malloc(bytes))) memcpy(k->rgb[at], im->rgb, bytes);
        return !k->rgb[at];
    }
    if (!k->rgb[at]) return 0;
    double db = decibels(k->rgb[at], im->rgb, bytes);
    k->sum_db += db;
    if (!k->compared++ || db < k->least_db) k->least_db = db;
    return 0;
}

static int calibrate(struct kiln_model *m, const struct kn_tasks *ts, bool json, struct kn_err *err) {
    struct kept k = {.rgb = calloc(ts->count, sizeof *k.rgb), .total = ts->count};
    struct kiln_callbacks cb = {.ctx = &k, .image = keep};
    int rc = k.rgb ? 0 : kn_err_set(err, KN_ENOMEM, "out of memory");
    if (!rc) rc = kiln_model_calibrate(m, ts->v, (int)ts->count, &cb, err);
    k.second = true;
    k.count = 0;
    if (!rc) rc = kiln_render(m, ts->v, (int)ts->count, &cb, err);
    if (!rc && k.compared) {
        double mean = k.sum_db / (double)k.compared;
        if (json)
            printf("{\"images\": %zu, \"psnr_mean_db\": %.2f, \"psnr_least_db\": %.2f}\n", k.compared, mean,
                   k.least_db);
        else
            printf("%zu pictures with eight-bit operands: %.1f dB from those without, %.1f dB at least\n",
                   k.compared, mean, k.least_db);
    }
    for (size_t i = 0; k.rgb && i < k.total; i++) free(k.rgb[i]);
    free(k.rgb);
    return rc;
}

/* Makes the output's folder, or sees that the file's is there: found before the model is loaded, not after
 * the first picture. */
static bool output_fits(const struct render_settings *o, const struct rendering *r, struct kn_err *err) {
    const char *files[] = {r->folder ? NULL : o->output, o->dump};
    if (r->folder && kn_fs_mkdirs(o->output, 0777, err)) return false;
    for (int i = 0; i < 2; i++) {
        const char *slash = files[i] ? strrchr(files[i], '/') : NULL;
        char dir[KN_PATH_MAX];
        if (!slash || slash == files[i]) continue;
        snprintf(dir, sizeof dir, "%.*s", (int)(slash - files[i]), files[i]);
        if (kn_fs_exists(dir)) continue;
        kn_err_set(err, KN_ENOENT, "%s: its folder does not exist", files[i]);
        return false;
    }
    return true;
}

int main(int argc, char **argv) {
    static char none[] = "";
    struct render_settings o = {.images = 1, .settings = {.prompt = none, .negative = none}};
    kn_fs_standard();
    int rc = parse_options(argc, argv, &o);
    if (rc) return rc < 0 ? 0 : rc;
    kn_log_init("kiln-render", KN_LOG_WARN);
    struct kn_err err = {0};
    struct kn_model_info info;
    char cache[KN_PATH_MAX];
    if (kiln_model_describe(o.model, cache_dir(&o, cache, sizeof cache), &info, &err))
        return fail("%s", err.text);
    if (o.describe) return describe(&info);

    struct kn_tasks ts = {0};
    struct kiln_engine *engine = NULL;
    struct kiln_model *model = NULL;
    struct rendering r = {.o = &o, .info = &info};
    struct stat st;
    int status = EXIT_USAGE;
    uint64_t drawn = 0;
    if (read_tasks(&o, &info, &ts, &drawn, &err)) {
        fail("%s", err.text);
        goto out;
    }
    r.folder = o.output && (o.prompts || ts.count > 1 || (!stat(o.output, &st) && S_ISDIR(st.st_mode)));
    if (!output_fits(&o, &r, &err)) {
        fail("%s", err.text);
        goto out;
    }
    struct kiln_engine_options eo = o.engine;
    eo.threads = o.threads;
    uint64_t begun = kn_clock_us();
    if (kiln_engine_create(&eo, &engine, &err) || kiln_model_load(engine, o.model, &model, &err) ||
        (o.lora_count && kiln_model_set_loras(model, o.loras, o.lora_count, &err)) ||
        (o.dump && kx_dump_create(&r.dump))) {
        fail("%s", err.text[0] ? err.text : "out of memory");
        goto out;
    }
    double load_s = (double)(kn_clock_us() - begun) / 1e6;
    struct sigaction sa = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);

    if (o.calibrate) {
        if ((rc = calibrate(model, &ts, o.json, &err)) && !interrupted) fail("%s", err.text);
        status = interrupted ? EXIT_INTERRUPTED : rc ? EXIT_SOME_FAILED : 0;
        goto out;
    }
    if (drawn && !o.quiet) fprintf(stderr, "kiln-render: seed %" PRIu64 "\n", drawn);
    r.total = ts.count;
    r.terminal = !o.quiet && isatty(STDERR_FILENO);
    begun = kn_clock_us();
    rc = render_all(&r, model, &ts, &err);
    double seconds = (double)(kn_clock_us() - begun) / 1e6;
    if (!rc && r.dump) rc = kx_dump_write(r.dump, o.dump, &err);
    if (rc && !interrupted) fail("%s", err.text);
    if (o.json) print_figures(&r, engine, load_s, seconds);
    status = interrupted ? EXIT_INTERRUPTED : rc || r.failed ? EXIT_SOME_FAILED : 0;
out:
    kx_dump_destroy(r.dump);
    kiln_model_destroy(model);
    kiln_engine_destroy(engine);
    kn_tasks_fini(&ts);
    return status;
}
