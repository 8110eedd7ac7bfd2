/* kiln-worker: flags and wiring; the work is in worker.h. Exit: 0 drained, 1 bad usage or configuration, 3
 * the engine failed, 4 another worker of the farm has its name, 5 the farm does not take its key (after 3 and 4 a supervisor starts the worker
 * again: systemd's, kiln's, or its own with --device all). */
#include <errno.h>
#include <fcntl.h>
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
#include "base/machine.h"
#include "base/token.h"
#include "base/options.h"
#include "proto/join.h"
#include "worker/device.h"
#include "worker/models.h"
#include "worker/supervise.h"
#include "worker/worker.h"

#define CREDIT 3
#define CREDIT_GPU 4 /* one in each of the three stages, one whose pictures are being acknowledged */
#define UNACKED_BYTES_MAX (256ull << 20)
#define LOCAL_WORKERS_MAX 1024
#define TREES_MAX 64
#define NAME_LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
#define READINGS_MS 2000 /* between two looks at the GPU */

static const char usage_head[] =
    "usage: kiln-worker --join ENDPOINT|FARMDIR [options]\n"
    "       kiln-worker --describe-model DIR\n"
    "       kiln-worker --list-devices\n"
    "\n"
    "Renders for a farm: joins its coordinator, takes shards of a batch, and sends the\n"
    "pictures back.\n"
    "\n";

static const char usage_tail[] =
    "\n"
    "GPUs are numbered as nvidia-smi numbers them, among those that\n"
    "CUDA_VISIBLE_DEVICES leaves over.\n"
    "SIGTERM drains: what has not begun is handed back, what runs is finished or handed\n"
    "back within 15 s. A second one ends it at once.\n"
    "\n"
    "examples:\n"
    "  kiln-worker --join tcp://render1:5600 --token @token --models ~/models\n"
    "  kiln-worker --join ~/.kiln --model ~/sd15 --threads 8\n"
    "  kiln-worker --join tcp://render1:5600 --models ~/models --device all\n"
    "  kiln-worker --join ~/.kiln --engine sim:ms=50\n";

struct worker_settings {
    const char *join, *token, *name, *base, *engine, *device, *describe;
    const char *models[TREES_MAX];
    bool tree[TREES_MAX]; /* beside models: --models, not --model */
    int model_count, threads;
    uint32_t credit;
    uint64_t model_mib_max;
    enum kn_log_level level;
    uint64_t memory_mib_max;
    int node; /* -1: any */
    bool list_devices, fastest, died_of_memory, version, help;
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

/* Whole numbers of a device's name; options have the parser's. */
static bool plain_number(const char *text, uint64_t min, uint64_t max, uint64_t *out) {
    return kn_option_number(text, (int64_t)min, max, out, NULL) == 0;
}

static int check_name(const char *name, struct kn_err *err) {
    size_t len = strlen(name);
    if (len > 0 && len <= KN_NAME_MAX && strspn(name, NAME_LETTERS) == len) return 0;
    return kn_err_set(err, KN_EINVAL, "%.80s: expected up to %d letters, digits, '.', '_' and '-'", name,
                      KN_NAME_MAX);
}

static int check_token(const char *where, struct kn_err *err) {
    struct kn_token unused;
    if (where[0] == '@' || strcmp(where, "-") == 0) return 0;
    return kn_token_read(where, &unused, err); /* which has the words */
}

static int check_device(const char *which, struct kn_err *err) {
    return which[0] ? 0 : kn_err_set(err, KN_EINVAL, "expected cpu, all, a number or a UUID");
}

/* --model and --models share a list: the models are loaded in the order in which they were named. */
static int add_models(struct worker_settings *o, const char *path, bool tree, struct kn_err *err) {
    if (o->model_count == TREES_MAX)
        return kn_err_set(err, KN_ELIMIT, "more than %d --model and --models", TREES_MAX);
    o->tree[o->model_count] = tree;
    o->models[o->model_count++] = path;
    return 0;
}

static int read_model(void *options, char *path, struct kn_err *err) {
    return add_models(options, path, false, err);
}

static int read_models(void *options, char *path, struct kn_err *err) {
    return add_models(options, path, true, err);
}

static const char *const precisions[] = {"auto", "f16", "bf16", "fp8", NULL}; /* as enum kiln_precision */
static const char *const levels[] = {"error", "warn", "info", "debug", NULL}; /* as enum kn_log_level */

#define INTO(member) KN_OPTION_INTO(struct worker_settings, member)
#define CHOICE(member, names) KN_OPTION_CHOICE_INTO(struct worker_settings, member, names)

static const struct kn_option option_table[] = {
    {"join", 0, "WHERE", 1,
     "tcp://HOST:PORT, ipc://PATH, or the folder of a farm on this machine; tcp://A:PORT,tcp://B:PORT where a "
     "coordinator stands by",
     INTO(join)},
    {"token", 0, "@FILE|-", 1,
     "for a farm that is reached by TCP, the first time: a file with the token (kiln token new --worker), or - for "
     "standard input (default: $KILN_TOKEN)",
     INTO(token), .check = check_token},
    {"name", 0, "NAME", 1,
     "who it is on the farm: unique there, the same after a restart (default: the farm makes one of the host's "
     "name)",
     INTO(name), .check = check_name},
    {"name-base", 0, "NAME", 1,
     "what the farm makes the name of when there is no --name: NAME, or NAME-2 … where others have it (default: "
     "the host's name)",
     INTO(base), .check = check_name},
    {"models", 0, "DIR", 1, "a folder of models' folders, or a model's folder itself; may be given again",
     .kind = KN_OPTION_OWN, .read = read_models},
    {"model", 0, "DIR", 1, "a model's folder (diffusers layout, safetensors); may be given again",
     .kind = KN_OPTION_OWN, .read = read_model},
    {"device", 0, "WHICH", 1,
     "what renders: cpu (default), a GPU by its number or the beginning of its UUID (see --list-devices), or "
     "all: a worker for each GPU, watched over by this process",
     INTO(device), .check = check_device},
    {"engine", 0, "ENGINE", 1,
     "cpu, cuda (both follow from --device), or sim: a simulated engine, with a model named sim; "
     "sim:KEY=VALUE,… of ms=50 crash=0.01 hang=0.002 nan=0.001 flaky=0.01 seed=7 size=64 batch=64 oom=8",
     INTO(engine)},
    {"precision", 0, "TYPE", 1,
     "GPU: auto (default), f16, bf16, or fp8 (for models that kiln-render --calibrate was run on)",
     CHOICE(precision, precisions)},
    {"fastest", 0, NULL, 1,
     "GPU: a picture may depend on its minibatch, for speed; such workers are a class of their own",
     INTO(fastest)},
    {"threads", 0, "N", 1, "threads of the engine (default: all cores)", INTO(threads), .max = 1024},
    {"credit", 0, "N", 1, "shards it holds at once, the running one included: 1 to 8 (default 3, of a GPU 4)",
     INTO(credit), .min = 1, .max = KN_SHARDS_PER_WORKER_MAX},
    {"model-memory", 0, "MIB", 1,
     "how much of models' weights stays in memory (default: half of what it may use, or of the GPU's)",
     INTO(model_mib_max), .min = 1, .max = 1u << 30},
    {"memory", 0, "MIB", 1,
     "CPU: how much memory it may use in all; fewer images at once where that is little (default: what is free)",
     INTO(memory_mib_max), .min = 1, .max = 1u << 30},
    {"node", 0, "N", 1, "CPU: stays on the cores of this NUMA node", INTO(node), .max = KN_NODES_MAX * 16},
    {"died-of-memory", 0, NULL, 1,
     "for supervisors: the kernel killed the process of this name before, for want of memory",
     INTO(died_of_memory)},
    {"log-level", 0, "LEVEL", 1, "error, warn, info (default), debug", CHOICE(level, levels)},
    {"describe-model", 0, "DIR", 1,
     "prints what a model's folder says of itself, as a line of JSON, and ends; sim[:…] too", INTO(describe)},
    {"list-devices", 0, NULL, 1, "prints the GPUs that it may use, a line of JSON each, and ends",
     INTO(list_devices)},
    {"version", 0, NULL, 1, "prints the version", KN_OPTION_STOP_INTO(struct worker_settings, version)},
    {"help", 0, NULL, 1, "this text", KN_OPTION_STOP_INTO(struct worker_settings, help)},
};

static const struct kn_options command_line = {"kiln-worker", option_table,
                                               sizeof option_table / sizeof option_table[0], 1};

/* Checks the options against each other and fills in what was not given. */
static int complete(struct worker_settings *o) {
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

/* 0; an exit status; -1: done, leave with 0. */
static int parse(struct worker_settings *o, int argc, char **argv) {
    struct kn_err err = {0};
    int operands, rc = kn_options_parse(&command_line, argc, argv, o, &operands, &err);
    if (rc < 0) return fail("%s", err.text);
    if (o->version) puts("kiln-worker " KILN_VERSION);
    if (o->help) {
        fputs(usage_head, stdout);
        kn_options_help(&command_line, stdout);
        fputs(usage_tail, stdout);
    }
    if (rc == 1) return -1;
    if (operands > 0) return fail("%.64s: unexpected argument; see kiln-worker --help", argv[1]);
    return complete(o);
}

/* ---- who it is */

static void host_name(char *out, size_t max) {
    out[0] = '\0';
    if (gethostname(out, max - 1) != 0 || !out[0]) snprintf(out, max, "worker");
    out[max - 1] = '\0';
    for (char *p = out; *p; p++)
        if (!strchr(NAME_LETTERS, *p)) *p = '-';
}

/* A number that no other worker of this user holds here; the lock is held until the process ends. -1: no lock
 * can be had. */
static int lock_place(const char *dir) {
    char path[KN_PATH_MAX];
    for (int i = 0; i < LOCAL_WORKERS_MAX; i++) {
        int n = snprintf(path, sizeof path, "%s/kiln-worker-%u-%d.lock", dir, (unsigned)getuid(), i);
        if (n < 0 || (size_t)n >= sizeof path) break;
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0) continue;
        if (flock(fd, LOCK_EX | LOCK_NB) == 0) return i;
        close(fd);
    }
    return -1;
}

/* Who a worker is that nobody named: the farm makes its name of a base and gives it back to the same machine
 * and place. Until the farm has said it, and on farms that do not give names, it is base and place. */
struct made_name {
    char base[KN_NAME_MAX + 1], name[KN_NAME_MAX + 1];
    kn_id machine;
};

static int make_name(const struct worker_settings *o, struct made_name *out) {
    const char *runtime = getenv("XDG_RUNTIME_DIR"), *dir = runtime && runtime[0] == '/' ? runtime : "/tmp";
    char text[256] = "";
    kn_digest digest;
    int place = 0;
    if (o->base)
        snprintf(out->base, sizeof out->base, "%s", o->base);
    else
        host_name(out->base, sizeof out->base);
    if (!o->base && (place = lock_place(dir)) < 0)
        return fail("--name is needed: no lock in %s can be had for a name of its own", dir);
    if (o->base)
        snprintf(out->name, sizeof out->name, "%s", o->base);
    else
        snprintf(out->name, sizeof out->name, "%.*s-%d", KN_NAME_MAX - 6, out->base, place);
    FILE *f = fopen("/etc/machine-id", "re");
    if (f && !fgets(text, 128, f)) text[0] = '\0';
    if (f) fclose(f);
    size_t used = strcspn(text, "\n");
    snprintf(text + used, sizeof text - used, " %u %d %s", (unsigned)getuid(), place, out->base);
    kn_sha256(text, strlen(text), digest);
    memcpy(out->machine, digest, sizeof out->machine);
    return 0;
}

/* This machine's way onto the farm. Its key has the name that a person chose for the worker, or the machine's. */
static int join_farm(const struct worker_settings *o, struct kn_join *out) {
    struct kn_join_list list;
    struct kn_err err = {0};
    char host[KN_NAME_MAX + 1];
    host_name(host, sizeof host);
    int rc = kn_join_split(o->join, &list, &err);
    struct kn_join_options jo = {.farm = &list,
                                 .token = o->token,
                                 .worker = true,
                                 .name = o->name ? o->name : host,
                                 .chosen = o->name != NULL};
    if (rc == 0) rc = kn_join(&jo, out, &err);
    if (rc == 0) return 0;
    kn_error("not_joined reason=\"%s\"", err.text);
    fail("--join: %s", err.text);
    return rc == KN_EPERM ? WORKER_EXIT_KEY : rc == KN_EEXIST ? WORKER_EXIT_NAME : WORKER_EXIT_USAGE;
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

/* Opens the GPU that a word names; only that one is visible to CUDA afterwards. Without NVML, CUDA is left to
 * find it.
 * */
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

static int run_all(const struct worker_settings *o, char **argv) {
    char host[KN_NAME_MAX - 6];
    const char *uuids[DEVICES_MAX];
    struct devices *d;
    struct kn_err err = {0};
    host_name(host, sizeof host);
    if (devices_open(NULL, getenv("CUDA_VISIBLE_DEVICES"), &d, &err) != 0)
        return fail("--device all: %s", err.text);
    int n = devices_count(d);
    struct kn_join join; /* once for all; each finds the key where this one has left it */
    int joined = n > 0 ? join_farm(o, &join) : 0;
    if (joined != 0) {
        devices_close(d);
        return joined;
    }
    for (int i = 0; i < n; i++) uuids[i] = devices_at(d, i)->uuid;
    int rc = n == 0 ? fail("--device all: there is no GPU here")
                    : supervise_run(&(struct supervise_options){.program = "/proc/self/exe",
                                                                .words = argv,
                                                                .name = o->name ? o->name : host,
                                                                .chosen = o->name != NULL,
                                                                .uuids = uuids,
                                                                .count = n});
    devices_close(d);
    return rc;
}

/* ---- models and engine */

/* Before the engine counts its cores and makes its threads. Memory follows: the kernel gives a thread's node's. */
static int stay_on_node(int number, struct kn_err *err) {
    struct kn_machine m;
    kn_machine_read("", &m);
    for (int i = 0; i < m.nodes; i++) {
        if (m.node[i].number != number) continue;
        if (sched_setaffinity(0, sizeof m.node[i].cpus, &m.node[i].cpus) == 0) return 0;
        return kn_err_set(err, KN_EIO, "--node %d: %s", number, strerror(errno));
    }
    return kn_err_set(err, KN_EINVAL, "--node %d: none of its cores may be used here", number);
}

static int find_models(const struct worker_settings *o, struct model_list *l, struct kn_err *err) {
    int rc = 0;
    if (engine_is_sim(o->engine)) {
        struct engine_sim_options sim;
        struct kn_model_info info;
        if (engine_sim_parse(o->engine, &sim, err) != 0) return kn_err_prefix(err, "--engine");
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

struct worker_program {
    uv_loop_t loop;
    struct kn_wire *wire;
    struct worker *worker;
    uv_signal_t signals[3];
    int signals_seen, status;
};

static void on_ended(void *ctx, int status) {
    struct worker_program *p = ctx;
    p->status = status;
    uv_stop(&p->loop);
}

static void on_signal(uv_signal_t *h, int signum) {
    struct worker_program *p = h->data;
    (void)signum;
    if (p->signals_seen++ == 0)
        worker_drain(p->worker, true, WORKER_PATIENCE_MS, "asked to end");
    else
        worker_leave_now(p->worker, WORKER_EXIT_OK, "asked twice to end");
}

static void watch_signals(struct worker_program *p) {
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
    signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        uv_signal_init(&p->loop, &p->signals[i]);
        p->signals[i].data = p;
        uv_signal_start(&p->signals[i], on_signal, numbers[i]);
    }
}

static int run(const struct worker_settings *o, const struct made_name *made, const struct kn_join *join,
               struct engine *engine, const struct gpu *gpu) {
    struct worker_program p = {0};
    struct kn_err err = {0};
    struct worker_options wo = {.loop = &p.loop,
                                .engine = engine,
                                .device_uuid = gpu->device ? gpu->device->uuid : "",
                                .watch = gpu->watch,
                                .join = o->join,
                                .name = o->name ? o->name : made->name,
                                .name_base = made->base,
                                .credit = o->credit,
                                .died_of_memory = o->died_of_memory,
                                .unacked_bytes_max = UNACKED_BYTES_MAX,
                                .ended = on_ended,
                                .ctx = &p};
    int rc = uv_loop_init(&p.loop);
    if (rc != 0) return fail("%s", uv_strerror(rc));
    if (kn_wire_create(&p.loop, &p.wire, &err) != 0) {
        uv_loop_close(&p.loop);
        return fail("%s", err.text);
    }
    if (join->keyed) kn_wire_use_keys(p.wire, &join->own, &join->server);
    wo.wire = p.wire;
    memcpy(wo.machine, made->machine, sizeof wo.machine);
    if (worker_create(&wo, &p.worker, &err) != 0) {
        kn_wire_destroy(p.wire);
        uv_loop_close(&p.loop);
        return fail("--join: %s", err.text);
    }
    watch_signals(&p);
    kn_info("started name=%s join=%s backend=%s device=\"%s\" models=%zu", wo.name, o->join, engine->backend,
            engine->device, engine->model_count);
    uv_run(&p.loop, UV_RUN_DEFAULT);

    bool clean = worker_close(p.worker);
    if (!clean) {
        kn_wire_destroy(p.wire); /* what was said last goes out */
        engine_linger(engine);
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
    struct worker_settings o = {.level = KN_LOG_INFO, .node = -1};
    kn_fs_standard();
    if (argc == 3 && strcmp(argv[1], ENGINE_CHILD_WORD) == 0) return engine_child_main(argv[2]);
    int rc = parse(&o, argc, argv);
    if (rc != 0) return rc < 0 ? WORKER_EXIT_OK : rc;
    kn_log_init("worker", o.level);
    kn_log_rotate(LOG_FILE_BYTES_MAX);
    if (o.describe) return describe(o.describe);
    if (o.list_devices) return list_devices();
    if (o.device && strcmp(o.device, "all") == 0) return run_all(&o, argv);
    struct made_name made = {0};
    struct kn_join join; /* before the engine's process, which is not to have the token in its environment */
    if (!o.name && (rc = make_name(&o, &made)) != 0) return rc;
    if ((rc = join_farm(&o, &join)) != 0) return rc;
    struct model_list models = {0};
    struct kn_err err = {0};
    struct engine *engine = NULL;
    struct gpu gpu = {0};
    rc = o.node >= 0 ? stay_on_node(o.node, &err) : 0;
    if (rc == 0) rc = find_models(&o, &models, &err);
    if (rc == 0 && o.device && strcmp(o.device, "cpu") != 0 && (rc = gpu_open(&gpu, o.device, &err)) != 0)
        kn_err_prefix(&err, "--device");
    char place[KN_PATH_MAX];
    snprintf(place, sizeof place, "%.2000s %s %.200s", o.join, o.name ? o.name : made.name,
             o.device ? o.device : "");
    struct engine_options eo = {.spec = o.engine,
                                .place = place,
                                .device_index = gpu.index,
                                .precision = o.precision,
                                .fastest = o.fastest,
                                .threads = o.threads,
                                .memory_bytes_max = gpu.device ? 0 : o.memory_mib_max << 20,
                                .model_bytes_max = o.model_mib_max << 20};
    if (rc == 0 && (rc = engine_open_child(&eo, models.v, models.count, &engine, &err)) != 0)
        kn_err_prefix(&err, "--engine %.32s", o.engine);
    bool later = rc == KN_EAGAIN; /* its engine of before is in the way */
    rc = rc == 0 ? run(&o, &made, &join, engine, &gpu) : fail("%s", err.text);
    if (later) rc = WORKER_EXIT_ENGINE;
    kn_key_pair_forget(&join.own);
    engine_close(engine);
    gpu_close(&gpu);
    models_fini(&models);
    return rc;
}
