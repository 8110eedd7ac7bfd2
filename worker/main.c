/* kiln-worker: flags and wiring; the work is in worker.h. Exit: 0 drained, 1 bad usage or configuration, 3
 * the engine failed (a supervisor starts the worker again: systemd's, kiln's, or its own with --device all).
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/log.h"
#include "worker/device.h"
#include "worker/models.h"
#include "worker/supervise.h"
#include "worker/worker.h"

#define CREDIT 3
#define CREDIT_GPU 4 /* one in each of the three stages, one whose pictures are being acknowledged */
#define UNACKED_BYTES_MAX (256ull << 20)
#define LOCAL_WORKERS_MAX 1024
#define TREES_MAX 64
#define READINGS_MS 2000 /* between two looks at the GPU */

static const char usage[] =
    "usage: kiln-worker --join ENDPOINT|FARMDIR [options]\n"
    "       kiln-worker --describe-model DIR\n"
    "       kiln-worker --list-devices\n"
    "\n"
    "Renders for a farm: joins its coordinator, takes shards of a batch, and sends the pictures back.\n"
    "\n"
    "  --join WHERE          tcp://HOST:PORT, ipc://PATH, or the folder of a farm on this machine\n"
    "  --name NAME           who it is on the farm: unique there, the same after a restart (default: host "
    "and number)\n"
    "  --models DIR          a folder of models' folders, or a model's folder itself; may be given again\n"
    "  --model DIR           a model's folder (diffusers layout, safetensors); may be given again\n"
    "  --device WHICH        what renders: cpu (default), a GPU by its number or the beginning of its UUID "
    "(see "
    "--list-devices),\n"
    "                        or all: a worker for each GPU, watched over by this process\n"
    "  --engine ENGINE       cpu, cuda (both follow from --device), or "
    "sim[:ms=50,crash=0.01,hang=0.002,nan=0.001,flaky=0.01,seed=7,size=64,\n"
    "                        batch=64,oom=8]: a simulated engine, with a model named sim\n"
    "  --precision TYPE      GPU: auto (default), f16, bf16, or fp8 (for models that kiln-render --calibrate "
    "was run on)\n"
    "  --fastest             GPU: a picture may depend on its batch, for speed; such workers are a class of "
    "their own\n"
    "  --threads N           threads of the engine (default: all cores)\n"
    "  --credit N            shards it holds at once, the running one included: 1 to 8 (default 3, of a GPU "
    "4)\n"
    "  --model-memory MIB    how much of models' weights stays in memory (default: half of this machine's, "
    "or of the GPU's)\n"
    "  --log-level LEVEL     error, warn, info (default), debug\n"
    "  --describe-model DIR  prints what a model's folder says of itself, as a line of JSON, and ends; "
    "sim[:…] too\n"
    "  --list-devices        prints the GPUs that it may use, a line of JSON each, and ends\n"
    "  --version, --help\n"
    "\n"
    "GPUs are numbered as nvidia-smi numbers them, among those that CUDA_VISIBLE_DEVICES leaves over.\n"
    "SIGTERM drains: what has not begun is handed back, what runs is finished or handed back within 15 s. A "
    "second one\n"
    "ends it at once.\n"
    "\n"
    "examples:\n"
    "  kiln-worker --join tcp://render1:5600 --models ~/models\n"
    "  kiln-worker --join ~/.kiln --model ~/sd15 --threads 8\n"
    "  kiln-worker --join tcp://render1:5600 --models ~/models --device all\n"
    "  kiln-worker --join ~/.kiln --engine sim:ms=50\n";

struct options {
    const char *join, *name, *engine, *device, *describe;
    const char *models[TREES_MAX];
    bool tree[TREES_MAX]; /* beside models: --models, not --model */
    int model_count, threads;
    uint32_t credit;
    uint64_t model_bytes_max;
    enum kn_log_level level;
    bool list_devices, fastest;
    enum kiln_precision precision;
};

static int fail(const char *fmt, ...) KN_PRINTF(1, 2);
static int fail(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fputs("kiln-worker: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    return WORKER_EXIT_USAGE;
}

/* ---- options */

enum {
    OPT_JOIN = 256,
    OPT_NAME,
    OPT_MODELS,
    OPT_MODEL,
    OPT_DEVICE,
    OPT_ENGINE,
    OPT_PRECISION,
    OPT_FASTEST,
    OPT_THREADS,
    OPT_CREDIT,
    OPT_MEMORY,
    OPT_LOG_LEVEL,
    OPT_DESCRIBE,
    OPT_LIST_DEVICES,
    OPT_VERSION,
    OPT_HELP
};

static const struct option long_options[] = {
    {"join", required_argument, NULL, OPT_JOIN},
    {"name", required_argument, NULL, OPT_NAME},
    {"models", required_argument, NULL, OPT_MODELS},
    {"model", required_argument, NULL, OPT_MODEL},
    {"device", required_argument, NULL, OPT_DEVICE},
    {"engine", required_argument, NULL, OPT_ENGINE},
    {"precision", required_argument, NULL, OPT_PRECISION},
    {"fastest", no_argument, NULL, OPT_FASTEST},
    {"threads", required_argument, NULL, OPT_THREADS},
    {"credit", required_argument, NULL, OPT_CREDIT},
    {"model-memory", required_argument, NULL, OPT_MEMORY},
    {"log-level", required_argument, NULL, OPT_LOG_LEVEL},
    {"describe-model", required_argument, NULL, OPT_DESCRIBE},
    {"list-devices", no_argument, NULL, OPT_LIST_DEVICES},
    {"version", no_argument, NULL, OPT_VERSION},
    {"help", no_argument, NULL, OPT_HELP},
    {NULL, 0, NULL, 0},
};

static bool plain_number(const char *text, uint64_t min, uint64_t max, uint64_t *out) {
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (errno || text[0] < '0' || text[0] > '9' || *end || v < min || v > max) return false;
    *out = v;
    return true;
}

static bool number(const char *flag, const char *text, uint64_t min, uint64_t max, uint64_t *out) {
    if (!plain_number(text, min, max, out)) {
        fail("%s: %.64s is not between %llu and %llu", flag, text, (unsigned long long)min,
             (unsigned long long)max);
        return false;
    }
    return true;
}

static int unknown_option(const char *arg) {
    const char *names[sizeof long_options / sizeof long_options[0]];
    char word[64];
    size_t n = 0;
    for (const struct option *o = long_options; o->name; o++) names[n++] = o->name;
    names[n] = NULL;
    snprintf(word, sizeof word, "%.*s", (int)strcspn(arg, "="), arg);
    const char *near = kn_suggest(word + strspn(word, "-"), names);
    return near ? fail("%s: unknown option, did you mean --%s?", word, near)
                : fail("%s: unknown option; see kiln-worker --help", word);
}

static bool name_is_good(const char *name) {
    size_t len = strlen(name);
    if (len == 0 || len > KN_NAME_MAX) return false;
    for (; *name; name++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", *name)) return false;
    return true;
}

/* 0; an exit status; -1: done, leave with 0. */
static int set_option(struct options *o, int opt, const char *arg) {
    uint64_t n = 0;
    switch (opt) {
    case OPT_JOIN:
        o->join = arg;
        return 0;
    case OPT_NAME:
        o->name = arg;
        return name_is_good(arg) ? 0
                                 : fail("--name: %.80s: expected up to %d letters, digits, '.', '_' and '-'",
                                        arg, KN_NAME_MAX);
    case OPT_MODELS:
    case OPT_MODEL:
        if (o->model_count == TREES_MAX) return fail("more than %d --model and --models", TREES_MAX);
        o->tree[o->model_count] = opt == OPT_MODELS;
        o->models[o->model_count++] = arg;
        return 0;
    case OPT_DEVICE:
        o->device = arg;
        return arg[0] ? 0 : fail("--device: expected cpu, all, a number or a UUID");
    case OPT_ENGINE:
        o->engine = arg;
        return 0;
    case OPT_PRECISION: {
        static const char *const names[] = {"auto", "f16", "bf16", "fp8"}; /* as enum kiln_precision */
        for (int i = 0; i < 4; i++)
            if (strcmp(arg, names[i]) == 0) {
                o->precision = (enum kiln_precision)i;
                return 0;
            }
        return fail("--precision: %.64s is none of auto, f16, bf16, fp8", arg);
    }
    case OPT_FASTEST:
        o->fastest = true;
        return 0;
    case OPT_THREADS: /* 0: all cores */
        if (!number("--threads", arg, 0, 1024, &n)) return WORKER_EXIT_USAGE;
        o->threads = (int)n;
        return 0;
    case OPT_CREDIT:
        if (!number("--credit", arg, 1, KN_SHARDS_PER_WORKER_MAX, &n)) return WORKER_EXIT_USAGE;
        o->credit = (uint32_t)n;
        return 0;
    case OPT_MEMORY:
        if (!number("--model-memory", arg, 1, 1ull << 30, &n)) return WORKER_EXIT_USAGE;
        o->model_bytes_max = n << 20;
        return 0;
    case OPT_LOG_LEVEL:
        return kn_log_level_parse(arg, &o->level)
                   ? fail("--log-level: %.64s: expected error, warn, info or debug", arg)
                   : 0;
    case OPT_DESCRIBE:
        o->describe = arg;
        return 0;
    case OPT_LIST_DEVICES:
        o->list_devices = true;
        return 0;
    case OPT_VERSION:
        puts("kiln-worker " KILN_VERSION);
        return -1;
    case OPT_HELP:
        fputs(usage, stdout);
        return -1;
    default:
        return WORKER_EXIT_USAGE;
    }
}

static int parse(struct options *o, int argc, char **argv) {
    opterr = 0;
    for (;;) {
        int at = optind, opt = getopt_long(argc, argv, ":", long_options, NULL);
        if (opt == -1) break;
        if (opt == ':') return fail("%s: expects a value", argv[optind - 1]);
        if (opt == '?') return unknown_option(argv[optind > at ? optind - 1 : at]);
        int rc = set_option(o, opt, optarg);
        if (rc != 0) return rc;
    }
    if (optind < argc) return fail("%.64s: unexpected argument; see kiln-worker --help", argv[optind]);
    if (!o->join && !o->describe && !o->list_devices)
        return fail("--join ENDPOINT|FARMDIR is missing; see kiln-worker --help");
    bool gpu = o->device && strcmp(o->device, "cpu") != 0;
    if (!o->engine) o->engine = gpu ? "cuda" : "cpu";
    if (gpu && strcmp(o->engine, "cpu") == 0)
        return fail("--device %.64s and --engine cpu: the one or the other", o->device);
    if (!gpu && strcmp(o->engine, "cuda") == 0) {
        if (o->device) return fail("--device cpu and --engine cuda: the one or the other");
        o->device = "0";
    }
    if (!o->credit) o->credit = strcmp(o->engine, "cuda") == 0 ? CREDIT_GPU : CREDIT;
    return 0;
}

/* ---- who it is */

static void host_name(char *out, size_t max) {
    out[0] = '\0';
    if (gethostname(out, max - 1) != 0 || !out[0]) snprintf(out, max, "worker");
    out[max - 1] = '\0';
    for (char *p = out; *p; p++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", *p)) *p = '-';
}

/* The host's name and the first number that no other worker of this user holds here: two workers never share
 * it, and one that is started again finds its own. The lock is held until the process ends. */
static int default_name(char out[KN_NAME_MAX + 1]) {
    const char *dir = getenv("XDG_RUNTIME_DIR");
    char host[KN_NAME_MAX - 6], path[KN_PATH_MAX];
    host_name(host, sizeof host);
    for (int i = 0; i < LOCAL_WORKERS_MAX; i++) {
        int n = snprintf(path, sizeof path, "%s/kiln-worker-%u-%d.lock", dir && dir[0] == '/' ? dir : "/tmp",
                         (unsigned)getuid(), i);
        if (n < 0 || (size_t)n >= sizeof path) break;
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0) continue;
        if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
            snprintf(out, KN_NAME_MAX + 1, "%s-%d", host, i);
            return 0;
        }
        close(fd);
    }
    return fail("--name is needed: no lock in %s can be had for a name of its own", dir ? dir : "/tmp");
}

/* ---- GPUs */

struct gpu {
    struct devices *devices;     /* owned; NULL: there is no NVML, or none is used */
    const struct device *device; /* in devices */
    struct device_watch *watch;
    int index; /* CUDA's number */
};

static void gpu_close(struct gpu *g) {
    device_watch_stop(g->watch);
    devices_close(g->devices);
}

/* Which GPU a word names; only that one is visible to CUDA afterwards. Without NVML, CUDA is left to find it.
 */
static int gpu_open(struct gpu *g, const char *which, struct kn_err *err) {
    bool number = which[0] >= '0' && which[0] <= '9';
    uint64_t n = 0;
    setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID", 0); /* numbers are nvidia-smi's */
    int rc = devices_open(NULL, getenv("CUDA_VISIBLE_DEVICES"), &g->devices, err);
    if (rc == KN_ENOENT) {
        kn_warn("device_not_watched reason=\"%s\"", err->text);
        if (number && !plain_number(which, 0, DEVICES_MAX - 1, &n))
            return kn_err_set(err, KN_EINVAL, "%.64s: not a GPU's number", which);
        g->index = (int)n;
        return number ? 0 : device_bind(which, err);
    }
    if (rc == 0) rc = devices_find(g->devices, which, &g->device, err);
    if (rc == 0) rc = device_bind(g->device->uuid, err);
    if (rc == 0) rc = device_watch_start(g->devices, g->device, READINGS_MS, &g->watch, err);
    return rc;
}

static int list_devices(void) {
    struct devices *d;
    struct kn_err err = {0};
    if (devices_open(NULL, getenv("CUDA_VISIBLE_DEVICES"), &d, &err) != 0) return fail("%s", err.text);
    for (int i = 0; i < devices_count(d); i++) {
        const struct device *v = devices_at(d, i);
        struct kn_readings r;
        device_read(d, v, &r);
        json_object *o = json_object_new_object();
        json_object_object_add(o, "device", json_object_new_int(i));
        json_object_object_add(o, "uuid", json_object_new_string(v->uuid));
        json_object_object_add(o, "name", json_object_new_string(v->name));
        json_object_object_add(o, "memory_total",
                               r.memory_total ? json_object_new_uint64(r.memory_total) : NULL);
        json_object_object_add(o, "memory_used",
                               r.memory_total ? json_object_new_uint64(r.memory_used) : NULL);
        json_object_object_add(o, "temperature_c",
                               r.temperature_c ? json_object_new_int((int)r.temperature_c) : NULL);
        puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
        json_object_put(o);
    }
    devices_close(d);
    return fflush(stdout) == 0 ? WORKER_EXIT_OK : WORKER_EXIT_USAGE;
}

static int run_all(const struct options *o, char **argv) {
    char host[KN_NAME_MAX - 6];
    const char *uuids[DEVICES_MAX];
    struct devices *d;
    struct kn_err err = {0};
    host_name(host, sizeof host);
    if (devices_open(NULL, getenv("CUDA_VISIBLE_DEVICES"), &d, &err) != 0)
        return fail("--device all: %s", err.text);
    int n = devices_count(d);
    for (int i = 0; i < n; i++) uuids[i] = devices_at(d, i)->uuid;
    int rc = n == 0 ? fail("--device all: there is no GPU here")
                    : supervise_run(&(struct supervise_options){.program = "/proc/self/exe",
                                                                .words = argv,
                                                                .name = o->name ? o->name : host,
                                                                .uuids = uuids,
                                                                .count = n});
    devices_close(d);
    return rc;
}

/* ---- models and engine */

static int find_models(const struct options *o, struct model_list *l, struct kn_err *err) {
    int rc = 0;
    if (engine_is_sim(o->engine)) {
        struct engine_sim_options sim;
        struct kn_model_info info;
        if ((rc = engine_sim_parse(o->engine, &sim, err)) != 0) return kn_err_prefix(err, "--engine");
        engine_sim_model(&sim, &info);
        rc = models_add(l, &info, err);
    }
    for (int i = 0; i < o->model_count && rc == 0; i++) {
        rc = o->tree[i] ? models_add_tree(l, o->models[i], err) : models_add_folder(l, o->models[i], err);
        if (rc != 0) kn_err_prefix(err, o->tree[i] ? "--models" : "--model");
    }
    if (rc == 0 && l->count == 0) rc = kn_err_set(err, KN_ECONFIG, "--models DIR or --model DIR is needed");
    return rc;
}

/* A model's folder, or the model of a simulated engine: "sim:size=32". */
static int describe(const char *dir) {
    struct model_list l = {0};
    struct kn_model_info sim;
    struct engine_sim_options opt;
    struct kn_err err = {0};
    struct kn_buf out;
    kn_buf_init(&out, 1 << 16);
    bool is_sim = engine_is_sim(dir);
    int rc = is_sim ? engine_sim_parse(dir, &opt, &err) : models_add_folder(&l, dir, &err);
    if (rc == 0 && is_sim) engine_sim_model(&opt, &sim);
    if (rc == 0 && (rc = models_describe(is_sim ? &sim : &l.v[0].info, &out)) != 0)
        kn_err_set(&err, rc, "%s", kn_err_words(rc));
    if (rc == 0)
        fputs(out.data, stdout);
    else
        fail("%s", err.text);
    kn_buf_fini(&out);
    models_fini(&l);
    return rc == 0 && fflush(stdout) == 0 ? WORKER_EXIT_OK : WORKER_EXIT_USAGE;
}

/* ---- running */

struct program {
    uv_loop_t loop;
    struct kn_wire *wire;
    struct worker *worker;
    uv_signal_t signals[3];
    int signals_seen, status;
};

static void on_ended(void *ctx, int status) {
    struct program *p = ctx;
    p->status = status;
    uv_stop(&p->loop);
}

static void on_signal(uv_signal_t *h, int signum) {
    struct program *p = h->data;
    (void)signum;
    if (p->signals_seen++ == 0)
        worker_drain(p->worker, true, WORKER_PATIENCE_MS, "asked to end");
    else
        worker_leave_now(p->worker, WORKER_EXIT_OK, "asked twice to end");
}

static void watch_signals(struct program *p) {
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
    signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        uv_signal_init(&p->loop, &p->signals[i]);
        p->signals[i].data = p;
        uv_signal_start(&p->signals[i], on_signal, numbers[i]);
    }
}

static int run(const struct options *o, struct engine *engine, const struct gpu *gpu) {
    struct program p = {0};
    struct kn_err err = {0};
    struct worker_options wo = {.loop = &p.loop,
                                .engine = engine,
                                .device_uuid = gpu->device ? gpu->device->uuid : "",
                                .watch = gpu->watch,
                                .join = o->join,
                                .name = o->name,
                                .credit = o->credit,
                                .unacked_bytes_max = UNACKED_BYTES_MAX,
                                .ended = on_ended,
                                .ctx = &p};
    int rc = uv_loop_init(&p.loop);
    if (rc != 0) return fail("%s", uv_strerror(rc));
    if (kn_wire_create(&p.loop, &p.wire, &err) != 0) {
        uv_loop_close(&p.loop);
        return fail("%s", err.text);
    }
    wo.wire = p.wire;
    if (worker_create(&wo, &p.worker, &err) != 0) {
        kn_wire_destroy(p.wire);
        uv_loop_close(&p.loop);
        return fail("--join: %s", err.text);
    }
    watch_signals(&p);
    kn_info("started name=%s join=%s backend=%s device=\"%s\" models=%zu", o->name, o->join, engine->backend,
            engine->device, engine->model_count);
    uv_run(&p.loop, UV_RUN_DEFAULT);

    bool clean = worker_close(p.worker);
    if (!clean) {
        kn_wire_destroy(p.wire); /* what was said last goes out */
        _exit(p.status);
    }
    for (size_t i = 0; i < sizeof p.signals / sizeof p.signals[0]; i++)
        uv_close((uv_handle_t *)&p.signals[i], NULL);
    uv_run(&p.loop, UV_RUN_DEFAULT);
    kn_wire_destroy(p.wire);
    worker_free(p.worker);
    uv_loop_close(&p.loop);
    return p.status;
}

int main(int argc, char **argv) {
    struct options o = {.level = KN_LOG_INFO};
    kn_fs_standard();
    int rc = parse(&o, argc, argv);
    if (rc != 0) return rc < 0 ? WORKER_EXIT_OK : rc;
    kn_log_init("worker", o.level);
    if (o.describe) return describe(o.describe);
    if (o.list_devices) return list_devices();
    if (o.device && strcmp(o.device, "all") == 0) return run_all(&o, argv);
    char name[KN_NAME_MAX + 1];
    if (!o.name) {
        if ((rc = default_name(name)) != 0) return rc;
        o.name = name;
    }
    struct model_list models = {0};
    struct kn_err err = {0};
    struct engine *engine = NULL;
    struct gpu gpu = {0};
    rc = find_models(&o, &models, &err);
    if (rc == 0 && o.device && strcmp(o.device, "cpu") != 0 && (rc = gpu_open(&gpu, o.device, &err)) != 0)
        kn_err_prefix(&err, "--device");
    struct engine_options eo = {.spec = o.engine,
                                .device_index = gpu.index,
                                .precision = o.precision,
                                .fastest = o.fastest,
                                .threads = o.threads,
                                .model_bytes_max = o.model_bytes_max};
    if (rc == 0 && (rc = engine_open(&eo, models.v, models.count, &engine, &err)) != 0)
        kn_err_prefix(&err, "--engine %.32s", o.engine);
    rc = rc == 0 ? run(&o, engine, &gpu) : fail("%s", err.text);
    engine_close(engine);
    gpu_close(&gpu);
    models_fini(&models);
    return rc;
}
