/* kiln up: a farm on this machine that stays when the command has returned. */
#include <errno.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/redis_address.h"
#include "base/token.h"
#include "cli/commands/commands.h"
#include "cli/farm/supervise.h"
#include "cli/print/print.h"
#include "cli/talk/batch.h"
#include "cli/talk/model.h"

#define WORKERS_READY_MS 120000 /* a large model from a slow disk */
#define DEATHS_MAX 3            /* of a worker, in a row: it does not start */

struct up {
    const struct cli_options *o;
    struct farmdir dir;
    struct supervise_handle farm;
    int workers, deaths[CLI_WORKERS_MAX];
    char last_words[600];
};

static void hear(struct up *u) {
    const char *line;
    while (supervise_news(&u->farm, &line) && line) {
        int count, w, n = 0;
        if (sscanf(line, "died %d worker-%d %n", &count, &w, &n) != 2 || n == 0) continue;
        if (w >= 0 && w < CLI_WORKERS_MAX) u->deaths[w] = count;
        snprintf(u->last_words, sizeof u->last_words, "worker-%d %s", w, line + n);
    }
}

/* Until every worker is there or has shown that it does not start. *there: how many are. */
static int await_workers(struct up *u, struct client *c, int *there, struct kn_err *err) {
    uint64_t end = kn_clock_ms() + WORKERS_READY_MS;
    for (;;) {
        struct kn_msg q = {.type = KN_MSG_WORKERS_QUERY}, *r;
        int rc = client_call(c, &q, KN_MSG_WORKER_LIST, CLIENT_PATIENCE_MS, &r, err);
        if (rc) return rc;
        *there = 0;
        for (size_t i = 0; i < r->u.worker_list.count; i++) {
            const struct kn_worker_status *w = &r->u.worker_list.v[i];
            int number, n = 0;
            /* of ours: one that joined from elsewhere is welcome, and is not waited for */
            bool ours = sscanf(w->worker, "worker-%d%n", &number, &n) == 1 && w->worker[n] == '\0' &&
                        number >= 0 && number < u->workers;
            *there += ours && w->state != KN_WORKER_LOST;
        }
        kn_msg_destroy(r);
        hear(u);
        int broken = 0;
        for (int w = 0; w < u->workers; w++) broken += u->deaths[w] >= DEATHS_MAX;
        if (*there + broken >= u->workers || kn_clock_ms() > end) return KN_OK;
        rc = client_sleep(c, 20, err);
        if (rc) return rc;
    }
}

static void tell_up(const struct up *u, int there) {
    char ready_file[KN_PATH_MAX];
    bool listens = u->o->listen_count > 0 && farmdir_path(&u->dir, "run/ready", ready_file) == KN_OK;
    print_for(u->o)->up(&(struct print_up){.endpoint = u->dir.endpoint,
                                           .dir = u->dir.dir,
                                           .pid = farmdir_pid(u->dir.dir, "supervisor"),
                                           .workers = there,
                                           .ready_file = listens ? ready_file : NULL});
}

/* Whoever asked for the endpoint must get it somehow. */
static void owe_endpoint(const char *endpoint) {
    static char owed[KN_ENDPOINT_MAX + 40];
    snprintf(owed, sizeof owed, "the farm is up at %s", endpoint);
    cli_owe(owed, CLI_ACCEPTED);
}

/* A farm that is up already: that is what was asked for. */
static int is_up(const struct cli_options *o, const char *dir) {
    char endpoint[KN_ENDPOINT_MAX + 1];
    struct kn_err err = {0};
    struct client *c = NULL;
    int rc = farmdir_endpoint(o->farm, CLIENT_PATIENCE_MS, endpoint, &err);
    if (rc == KN_OK) rc = client_open(endpoint, CLIENT_PATIENCE_MS, &c, &err);
    client_close(c);
    if (rc) return cli_fail(&err);
    bool private_farm = farmdir_pid(dir, "private") != 0;
    cli_say("%s: %s", dir,
            private_farm ? "a private farm is up there, which ends with its render; wait for that"
                         : "a farm is up already; what was asked for now changes nothing of it");
    if (private_farm) return CLI_BAD_INPUT;
    owe_endpoint(endpoint);
    printf("%s\n", endpoint);
    return CLI_DONE;
}

/* Sees that somebody answers there, before a coordinator tries for half a minute. The coordinator says what
 * the Redis is like. */
static int check_redis(const char *where, struct kn_err *err) {
    struct kn_redis_address to;
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    char port[16];
    int fd = -1, rc = kn_redis_address_read(where, &to, err);
    if (rc) return kn_err_prefix(err, "--redis");
    if (to.port == 0) {
        memcpy(local.sun_path, to.host, sizeof local.sun_path - 1); /* it fits: it was read as one */
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd >= 0 && connect(fd, (struct sockaddr *)&local, sizeof local) == 0) {
            close(fd);
            return KN_OK;
        }
    } else {
        snprintf(port, sizeof port, "%d", to.port);
        rc = getaddrinfo(to.host, port, &hints, &found);
        if (rc) return kn_err_set(err, KN_EINVAL, "--redis %s: %s", to.shown, gai_strerror(rc));
        for (struct addrinfo *a = found; a; a = a->ai_next) {
            fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
            if (fd < 0) continue;
            if (connect(fd, a->ai_addr, a->ai_addrlen) == 0) {
                close(fd);
                freeaddrinfo(found);
                return KN_OK;
            }
            if (a->ai_next) close(fd);
        }
        freeaddrinfo(found);
    }
    int e = errno;
    if (fd >= 0) close(fd);
    return kn_err_set(err, KN_ECONFIG, "--redis %s: %s", to.shown, strerror(e));
}

/* The supervisor works in another folder: a file is named from the root. */
static const char *absolute_redis(const char *where) {
    static char out[KN_PATH_MAX + 1] = "@";
    return where && where[0] == '@' && realpath(where + 1, out + 1) ? out : where;
}

/* Of the models in the folders (NULL: none are needed), those that a worker can hold count; the others are told. None
 * of them: that is why no farm is started. */
static int choose_size(const struct cli_options *o, const struct worker_devices *d,
                       const struct model_folders *folders, struct farm_size *out, struct kn_err *err) {
    struct models all = {0};
    int rc = folders && !d->count ? model_folders_describe(folders, &all, err) : KN_OK;
    size_t fit = 0;
    kn_machine_read("", &out->machine);
    for (size_t i = 0; i < all.count; i++) {
        struct farm_load one = {.models = &all.v[i], .model_count = 1};
        struct kn_err why = {0};
        if (farm_fits(&out->machine, &all.v[i], all.v[i].defaults.width, all.v[i].defaults.height) > 0) {
            struct kn_model_info m = all.v[fit];
            all.v[fit++] = all.v[i];
            all.v[i] = m;
        } else if (farm_size_on(o, d, &one, out, &why)) {
            cli_say("%s", why.text);
        }
    }
    struct farm_load load = {.models = all.v, .model_count = fit};
    if (rc == KN_OK && all.count > 0 && fit == 0)
        rc = kn_err_set(err, KN_ECONFIG, "no model fits in this machine's memory");
    if (rc == KN_OK) rc = farm_size_on(o, d, &load, out, err);
    models_fini(&all);
    return rc;
}

static int run(const struct cli_options *o) {
    static struct up u;
    static struct worker_devices devices;
    static struct farm_size size;
    struct kn_err err = {0};
    struct client *c = NULL;
    struct model_folders folders;
    char dir[KN_PATH_MAX], default_model[KN_NAME_MAX + 1];
    bool is_endpoint;
    int lock_fd = -1, there = 0;
    u.o = o;
    cli_catch_signals();
    struct supervise_config s = {.farm = &u.dir,
                                 .devices = &devices,
                                 .size = &size,
                                 .engine = o->engine,
                                 .listen = o->listen,
                                 .listen_count = o->listen_count,
                                 .data_port = o->data_port,
                                 .allow_volatile = o->allow_volatile,
                                 .redis = absolute_redis(o->redis)};
    int rc = o->insecure ? kn_err_set(&err, KN_EINVAL, "--insecure %s", kn_insecure_gone) : KN_OK;
    if (rc == KN_OK) rc = devices_choose(o, &devices, &err);
    if (rc == KN_OK) rc = farmdir_choose(o->farm, dir, &is_endpoint, &err);
    if (rc == KN_OK && is_endpoint)
        rc = kn_err_set(&err, KN_EINVAL, "--farm: %s is an endpoint; kiln up takes a folder", dir);
    if (rc == KN_OK && o->redis) rc = check_redis(o->redis, &err);
    if (rc == KN_OK && o->workers != 0) {
        rc = model_folders_choose(o, &folders, &err);
        s.model = folders.model;
        s.models = folders.models;
        s.model_dir_count = folders.count;
    }
    if (rc == KN_OK) rc = choose_size(o, &devices, o->workers ? &folders : NULL, &size, &err);
    u.workers = size.workers;
    if (rc == KN_OK) rc = model_default(o, default_model, &err);
    if (rc == KN_OK && default_model[0]) s.default_model = default_model;
    if (rc == KN_OK) rc = farmdir_create(dir, &u.dir, &err);
    if (rc == KN_OK) {
        rc = farmdir_lock(dir, &lock_fd, &err);
        if (rc == KN_EEXIST) return is_up(o, dir);
    }
    s.lock_fd = lock_fd;
    if (rc == KN_OK) rc = supervise_start(&s, &u.farm, &err);
    if (rc) {
        int status = cli_fail(&err);
        return status == CLI_INTERRUPTED || status == CLI_NOT_ALLOWED ? status : CLI_BAD_INPUT;
    }
    rc = client_open(u.dir.endpoint, CLIENT_PATIENCE_MS, &c, &err);
    if (rc == KN_OK) rc = await_workers(&u, c, &there, &err);
    client_close(c);
    if (rc == KN_OK && size.workers > 0 && there == 0)
        rc = kn_err_set(&err, KN_EDEVICE, "no worker can be started: %s",
                        u.last_words[0] ? u.last_words : "none has come up in two minutes");
    if (rc) {
        supervise_end(&u.farm);
        int status = cli_fail(&err);
        return status == CLI_INTERRUPTED || status == CLI_NOT_ALLOWED ? status : CLI_BAD_INPUT;
    }
    if (there < size.workers)
        cli_say("%d of %d workers cannot be started: %s", size.workers - there, size.workers, u.last_words);
    supervise_leave(&u.farm);
    owe_endpoint(u.dir.endpoint);
    tell_up(&u, there);
    return CLI_DONE;
}

const struct cli_command cmd_up = {
    .name = "up",
    .usage = "[options]",
    .words = "start a farm that stays",
    .more =
        "Starts Redis, the coordinator and workers for this machine, and leaves behind what "
        "watches them and starts again what dies. Returns when the workers are there, and prints "
        "the endpoint. Commands that name no model mean --model, if it was given here, else the "
        "model that ships.",
    .examples =
        "  kiln up\n"
        "  kiln up --workers 2 --models ~/models\n"
        "  kiln up --workers 0 --listen tcp://0.0.0.0:5600\n",
    .groups = CLI_G_FARM | CLI_G_START | CLI_G_UP | CLI_G_MODEL | CLI_G_JSON,
    .run = run,
};
