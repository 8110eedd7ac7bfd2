/* kiln-coordinator: flags and wiring; the work is in server.h. Exit: 0 ended by a signal, 1 bad usage or
 * configuration, 3 the store cannot be used (not there, another coordinator leads), 4 the lead was lost. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "base/log.h"
#include "base/spec.h"
#include "coordinator/server.h"

static const char usage[] =
    "usage: kiln-coordinator --dir DIR --redis WHERE --listen ENDPOINT [options]\n"
    "\n"
    "Takes batches of prompts, hands them out to workers, keeps their pictures. `kiln up` starts one by "
    "itself.\n"
    "\n"
    "  --dir DIR            the farm's folder: pictures are kept in DIR/objects\n"
    "  --redis WHERE        unix:/path or HOST:PORT of the Redis (7.0 or newer) that keeps the farm's state\n"
    "  --listen ENDPOINT    tcp://HOST:PORT or ipc:///path, for workers and commands; may be given again\n"
    "  --data-port N        port of the pictures' socket beside tcp endpoints (default: a free one, "
    "announced)\n"
    "  --insecure           listen beyond this machine, though nothing checks who connects\n"
    "  --allow-volatile     do not insist on the Redis settings without which accepted work can be lost\n"
    "  --standby            while another coordinator leads, wait for its end\n"
    "  --ready-file FILE    written when it listens and has read its state back\n"
    "  --log-level LEVEL    error, warn, info (default), debug\n"
    "  --version, --help\n"
    "\n"
    "SIGTERM or SIGINT ends it. Nothing that was accepted is lost by that, nor by kill -9: started again, it "
    "goes\n"
    "on where it was.\n"
    "\n"
    "examples:\n"
    "  kiln-coordinator --dir /srv/kiln --redis unix:/run/kiln/redis.sock --listen "
    "ipc:///run/kiln/control.sock\n"
    "  kiln-coordinator --dir /srv/kiln --redis 127.0.0.1:6379 --listen tcp://0.0.0.0:5600 --data-port 5601 "
    "--insecure\n";

enum { EXIT_USAGE = 1, EXIT_STORE = 3 };

static int fail(const char *fmt, ...) KN_PRINTF(1, 2);
static int fail(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fputs("kiln-coordinator: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    return EXIT_USAGE;
}

/* ---- options */

struct options {
    struct server_options server;
    struct store_redis_options redis;
    enum kn_log_level level;
};

enum {
    OPT_DIR = 256,
    OPT_REDIS,
    OPT_LISTEN,
    OPT_DATA_PORT,
    OPT_INSECURE,
    OPT_VOLATILE,
    OPT_STANDBY,
    OPT_READY,
    OPT_LOG_LEVEL,
    OPT_VERSION,
    OPT_HELP
};

static const struct option long_options[] = {
    {"dir", required_argument, NULL, OPT_DIR},
    {"redis", required_argument, NULL, OPT_REDIS},
    {"listen", required_argument, NULL, OPT_LISTEN},
    {"data-port", required_argument, NULL, OPT_DATA_PORT},
    {"insecure", no_argument, NULL, OPT_INSECURE},
    {"allow-volatile", no_argument, NULL, OPT_VOLATILE},
    {"standby", no_argument, NULL, OPT_STANDBY},
    {"ready-file", required_argument, NULL, OPT_READY},
    {"log-level", required_argument, NULL, OPT_LOG_LEVEL},
    {"version", no_argument, NULL, OPT_VERSION},
    {"help", no_argument, NULL, OPT_HELP},
    {NULL, 0, NULL, 0},
};

static int unknown_option(const char *arg) {
    const char *names[sizeof long_options / sizeof long_options[0]];
    char word[64];
    size_t n = 0;
    for (const struct option *o = long_options; o->name; o++) names[n++] = o->name;
    names[n] = NULL;
    snprintf(word, sizeof word, "%.*s", (int)strcspn(arg, "="), arg);
    const char *near = kn_suggest(word + strspn(word, "-"), names);
    return near ? fail("%s: unknown option, did you mean --%s?", word, near)
                : fail("%s: unknown option; see kiln-coordinator --help", word);
}

static int set_port(const char *text, int *out) {
    char *end;
    errno = 0;
    unsigned long v = strtoul(text, &end, 10);
    if (errno || text[0] < '0' || text[0] > '9' || *end || v < 1 || v > 65535)
        return fail("--data-port: %.64s is not a port", text);
    *out = (int)v;
    return 0;
}

/* 0: go on; <0: end with success; else the exit status. */
static int parse(int argc, char **argv, struct options *o) {
    opterr = 0;
    for (;;) {
        int at = optind, opt = getopt_long(argc, argv, ":", long_options, NULL), rc = 0;
        if (opt == -1) break;
        switch (opt) {
        case OPT_DIR:
            o->server.dir = optarg;
            break;
        case OPT_REDIS:
            o->redis.address = optarg;
            break;
        case OPT_LISTEN:
            if (o->server.listen_count == LISTEN_MAX) return fail("--listen: at most %d", LISTEN_MAX);
            o->server.listen[o->server.listen_count++] = optarg;
            break;
        case OPT_DATA_PORT:
            rc = set_port(optarg, &o->server.data_port);
            break;
        case OPT_INSECURE:
            o->server.insecure = true;
            break;
        case OPT_VOLATILE:
            o->redis.allow_volatile = true;
            break;
        case OPT_STANDBY:
            o->redis.standby = true;
            break;
        case OPT_READY:
            o->server.ready_file = optarg;
            break;
        case OPT_LOG_LEVEL:
            if (kn_log_level_parse(optarg, &o->level) != 0)
                return fail("--log-level: %.64s is none of error, warn, info, debug", optarg);
            break;
        case OPT_VERSION:
            puts("kiln-coordinator " KILN_VERSION);
            return -1;
        case OPT_HELP:
            fputs(usage, stdout);
            return -1;
        case ':':
            return fail("%s: needs a value", argv[at]);
        default:
            return unknown_option(argv[at]);
        }
        if (rc != 0) return rc;
    }
    if (optind < argc) return fail("%.100s: not expected; see kiln-coordinator --help", argv[optind]);
    if (!o->server.dir) return fail("--dir is missing; see kiln-coordinator --help");
    if (!o->redis.address) return fail("--redis is missing; see kiln-coordinator --help");
    if (o->server.listen_count == 0) return fail("--listen is missing; see kiln-coordinator --help");
    return 0;
}

/* ---- wiring */

struct program {
    struct server *server;
    uv_signal_t term, intr;
    int exit_code;
    bool ending;
};

static void end(struct program *p, int exit_code) {
    if (p->ending) return;
    p->ending = true;
    p->exit_code = exit_code;
    server_close(p->server);
    uv_close((uv_handle_t *)&p->term, NULL);
    uv_close((uv_handle_t *)&p->intr, NULL);
}

static void on_signal(uv_signal_t *h, int number) {
    kn_info("ending signal=%d", number);
    end(h->data, 0);
}

/* From inside a callback of the store: the end itself waits for the loop's next turn. */
static void on_end_timer(uv_timer_t *t) {
    struct program *p = t->data;
    uv_close((uv_handle_t *)t, NULL);
    end(p, 4);
}

static void on_stopped(void *ctx, int exit_code) {
    static uv_timer_t later;
    struct program *p = ctx;
    (void)exit_code;
    uv_timer_init(p->term.loop, &later);
    later.data = p;
    uv_timer_start(&later, on_end_timer, 0, 0);
}

int main(int argc, char **argv) {
    struct options o = {.level = KN_LOG_INFO};
    struct kn_err err = {0};
    struct program p = {0};
    struct store *store = NULL;
    uv_loop_t loop;
    kn_fs_standard();
    int rc = parse(argc, argv, &o);
    if (rc != 0) return rc < 0 ? 0 : rc;
    kn_log_init("coordinator", o.level);
    signal(SIGPIPE, SIG_IGN);
    setenv("UV_THREADPOOL_SIZE", "8", 0); /* they wait for the disk */

    rc = store_redis_open(&o.redis, &store, &err);
    if (rc != 0) {
        kn_error("store_unusable reason=\"%s\"", err.text);
        fail("%s", err.text);
        return rc == KN_ECONFIG || rc == KN_EINVAL ? EXIT_USAGE : EXIT_STORE;
    }
    if (uv_loop_init(&loop) != 0) return fail("no event loop");
    uv_signal_init(&loop, &p.term);
    uv_signal_init(&loop, &p.intr);
    p.term.data = p.intr.data = &p;
    rc = server_create(&loop, &o.server, store, &p.server, &err);
    if (rc == 0) {
        p.server->stopped = on_stopped;
        p.server->stopped_ctx = &p;
        rc = server_recover(p.server, &err);
    }
    if (rc == 0) rc = store_redis_start(store, &loop, &err);
    if (rc == 0) rc = server_listen(p.server, &err);
    if (rc == 0) {
        uv_signal_start(&p.term, on_signal, SIGTERM);
        uv_signal_start(&p.intr, on_signal, SIGINT);
        kn_info("ready term=%llu", (unsigned long long)store->term);
    } else {
        kn_error("start_failed reason=\"%s\"", err.text);
        fail("%s", err.text);
        if (p.server)
            end(&p, EXIT_USAGE);
        else
            return EXIT_USAGE;
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    server_destroy(p.server);
    uv_loop_close(&loop);
    kn_info("ended exit=%d", p.exit_code);
    return p.exit_code;
}
