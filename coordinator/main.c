/* kiln-coordinator: flags and wiring; the work is in server.h. Exit: 0 ended by a signal, 1 bad usage or
 * configuration, 3 the store cannot be used (not there, another coordinator leads), 4 the lead was lost. */
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "base/log.h"
#include "base/options.h"
#include "base/token.h"
#include "coordinator/recover.h"
#include "coordinator/server.h"
#include "coordinator/store/redis.h"
#include "proto/gate.h"

static const char usage_head[] =
    "usage: kiln-coordinator --dir DIR --redis WHERE --listen ENDPOINT [options]\n"
    "\n"
    "Takes batches of prompts, hands them out to workers, keeps their pictures. `kiln up`\n"
    "starts one by itself.\n"
    "\n";

static const char usage_tail[] =
    "\n"
    "SIGTERM or SIGINT ends it. Nothing that was accepted is lost by that, nor by kill -9:\n"
    "started again, it goes on where it was.\n"
    "\n"
    "examples:\n"
    "  kiln-coordinator --dir /srv/kiln --redis unix:/run/kiln/redis.sock \\\n"
    "      --listen ipc:///run/kiln/control.sock\n"
    "  kiln-coordinator --dir /srv/kiln --redis 127.0.0.1:6379 \\\n"
    "      --listen tcp://0.0.0.0:5600 --data-port 5601\n";

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

struct coordinator_settings {
    struct server_options server;
    struct store_redis_options redis;
    enum kn_log_level level;
    bool insecure, version, help;
};

static int read_listen(void *options, char *endpoint, struct kn_err *err) {
    struct coordinator_settings *o = options;
    if (o->server.listen_count == LISTEN_MAX) return kn_err_set(err, KN_ELIMIT, "at most %d", LISTEN_MAX);
    o->server.listen[o->server.listen_count++] = endpoint;
    return 0;
}

static int check_name(const char *name, struct kn_err *err) {
    return strlen(name) <= KN_NAME_MAX ? 0 : kn_err_set(err, KN_ELIMIT, "too long");
}

static const char *const levels[] = {"error", "warn", "info", "debug", NULL}; /* as enum kn_log_level */

#define INTO(member) KN_OPTION_INTO(struct coordinator_settings, member)

static const struct kn_option option_table[] = {
    {"dir", 0, "DIR", 1, "the farm's folder: pictures are kept in DIR/objects", INTO(server.dir)},
    {"redis", 0, "WHERE", 1,
     "the Redis (7.0 or newer) that keeps the farm's state: unix:/path, HOST:PORT or redis[s]://HOST[:PORT][/DB]; @FILE holds one with a password",
     INTO(redis.address)},
    {"store-mark", 0, "FILE", 1,
     "how far that state had come, to notice a Redis that went back (default: DIR/store.mark)",
     INTO(redis.mark)},
    {"listen", 0, "ENDPOINT", 1,
     "tcp://HOST:PORT or ipc:///path, for workers and commands; may be given again", .kind = KN_OPTION_OWN,
     .read = read_listen},
    {"data-port", 0, "N", 1,
     "port of the pictures' socket beside tcp endpoints (default: a free one, announced)",
     INTO(server.data_port), .min = 1, .max = 65535},
    {"insecure", 0, NULL, 1, "gone: who connects by TCP shows a key; says how to change", INTO(insecure)},
    {"allow-volatile", 0, NULL, 1,
     "do not insist on the Redis settings without which accepted work can be lost",
     INTO(redis.allow_volatile)},
    {"standby", 0, NULL, 1, "while another coordinator leads, wait for its end", INTO(redis.standby)},
    {"ready-file", 0, "FILE", 1, "written when it listens and has read its state back",
     INTO(server.ready_file)},
    {"no-scrub", 0, NULL, 1,
     "do not read pictures back to find damaged ones (a private farm's are moved out of it)",
     INTO(server.no_scrub)},
    {"default-model", 0, "NAME", 1,
     "the model that commands mean which name none (default: the one that ships)", INTO(server.default_model),
     .check = check_name},
    {"log-level", 0, "LEVEL", 1, "error, warn, info (default), debug",
     KN_OPTION_CHOICE_INTO(struct coordinator_settings, level, levels)},
    {"version", 0, NULL, 1, "prints the version", KN_OPTION_STOP_INTO(struct coordinator_settings, version)},
    {"help", 0, NULL, 1, "this text", KN_OPTION_STOP_INTO(struct coordinator_settings, help)},
};

static const struct kn_options command_line = {"kiln-coordinator", option_table,
                                               sizeof option_table / sizeof option_table[0], 1};

/* 0: go on; <0: end with success; else the exit status. */
static int parse(int argc, char **argv, struct coordinator_settings *o) {
    struct kn_err err = {0};
    int operands, rc = kn_options_parse(&command_line, argc, argv, o, &operands, &err);
    if (rc < 0) return fail("%s", err.text);
    if (o->version) puts("kiln-coordinator " KILN_VERSION);
    if (o->help) {
        fputs(usage_head, stdout);
        kn_options_help(&command_line, stdout);
        fputs(usage_tail, stdout);
    }
    if (rc == 1) return -1;
    if (operands > 0) return fail("%.100s: not expected; see kiln-coordinator --help", argv[1]);
    if (o->insecure) return fail("--insecure %s", kn_insecure_gone);
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
    struct coordinator_settings o = {.level = KN_LOG_INFO};
    struct kn_err err = {0};
    struct program p = {0};
    struct store *store = NULL;
    uv_loop_t loop;
    kn_fs_standard();
    int rc = parse(argc, argv, &o);
    if (rc != 0) return rc < 0 ? 0 : rc;
    kn_log_init("coordinator", o.level);
    kn_log_rotate(LOG_FILE_BYTES_MAX);
    signal(SIGPIPE, SIG_IGN);
    setenv("UV_THREADPOOL_SIZE", "8", 0); /* they wait for the disk */
    struct kn_gate_plan plan = kn_gate_plan(kn_fs_files_max(true));
    if (kn_gate_set(&plan) != 0) return fail("out of memory");
    o.server.workers_fit = (uint32_t)plan.workers;

    char mark[KN_PATH_MAX];
    rc = kn_fs_mkdirs(o.server.dir, 0777, &err);
    if (rc == 0) rc = kn_fs_join(mark, sizeof mark, o.server.dir, "store.mark");
    if (rc != 0) return fail("--dir: %s", err.text[0] ? err.text : kn_err_words(rc));
    if (!o.redis.mark) o.redis.mark = mark;
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
        rc = store_redis_start(store, &loop, &err);
    }
    if (rc == 0) rc = server_recover(p.server, &err);
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
    kn_log_flush(true);
    return p.exit_code;
}
