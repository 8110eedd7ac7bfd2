/* kiln up and kiln down: a farm on this machine that stays when the command has returned. */
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
#include "cli/talk/batch.h"
#include "cli/talk/submission.h"
#include "cli/farm/supervise.h"
#include "cli/text.h"
#include "proto/wire.h"

#define WORKERS_READY_MS 120000 /* a large model from a slow disk */
#define DEATHS_MAX 3            /* of a worker, in a row: it does not start */
#define DOWN_MS 90000
#define WORKERS_MAX 256

struct up {
    const struct cli_options *o;
    struct farmdir dir;
    struct supervise_handle farm;
    int workers, deaths[WORKERS_MAX];
    char last_words[600];
};

static void hear(struct up *u) {
    const char *line;
    while (supervise_news(&u->farm, &line) && line) {
        int count, w, n = 0;
        if (sscanf(line, "died %d worker-%d %n", &count, &w, &n) != 2 || n == 0) continue;
        if (w >= 0 && w < WORKERS_MAX) u->deaths[w] = count;
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

/* The ready file has them as they came to be: with the ports that were free. */
static void tell_listeners(const struct up *u) {
    char path[KN_PATH_MAX], *rest, *line;
    struct kn_buf b;
    kn_buf_init(&b, 1u << 16);
    if (farmdir_path(&u->dir, "run/ready", path) == KN_OK && kn_fs_read(path, &b, NULL) == KN_OK &&
        b.len > 0) {
        for (line = strtok_r(b.data, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
            if (strcmp(line, u->dir.endpoint) == 0) continue;
            char host[KN_HOST_MAX + 1] = "";
            const char *port = strrchr(line, ':');
            bool any = strncmp(line, "tcp://0.0.0.0:", 14) == 0 || strncmp(line, "tcp://*:", 8) == 0 ||
                       strncmp(line, "tcp://[::]:", 11) == 0;
            if (any && gethostname(host, sizeof host - 1) == 0)
                cli_say("nodes join with: kiln-worker --join tcp://%s%s", host, port);
            else
                cli_say("nodes join with: kiln-worker --join %s", line);
            if (!kn_endpoint_is_loopback(line))
                cli_say("there are no keys yet: whoever reaches %s can use this farm and read its prompts",
                        line);
        }
    }
    kn_buf_fini(&b);
}

static void tell_up(const struct up *u, int there) {
    if (u->o->json) {
        json_object *v = json_object_new_object();
        json_object_object_add(v, "endpoint", json_object_new_string(u->dir.endpoint));
        json_object_object_add(v, "dir", json_object_new_string(u->dir.dir));
        json_object_object_add(v, "pid", json_object_new_int64(u->farm.pid));
        json_object_object_add(v, "workers", json_object_new_int(there));
        struct kn_buf b;
        kn_buf_init(&b, 1u << 16);
        if (text_json(v, &b) == KN_OK) puts(b.data);
        kn_buf_fini(&b);
        json_object_put(v);
        return;
    }
    printf("%s\n", u->dir.endpoint);
    fflush(stdout);
    cli_say("a farm is up in %s, with %d worker%s", u->dir.dir, there, there == 1 ? "" : "s");
    if (u->o->listen_count > 0) tell_listeners(u);
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
    printf("%s\n", endpoint);
    return CLI_DONE;
}

/* Whether anybody is there, before a coordinator tries for half a minute. What the Redis is like, it says. */
static int check_redis(const char *where, struct kn_err *err) {
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    char host[256];
    int fd = -1;
    if (strncmp(where, "unix:", 5) == 0) {
        if (strlen(where + 5) >= sizeof local.sun_path)
            return kn_err_set(err, KN_ELIMIT, "--redis: a socket's path is at most %zu bytes",
                              sizeof local.sun_path - 1);
        strcpy(local.sun_path, where + 5);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd >= 0 && connect(fd, (struct sockaddr *)&local, sizeof local) == 0) {
            close(fd);
            return KN_OK;
        }
    } else {
        const char *port = strrchr(where, ':');
        if (!port || port == where || (size_t)(port - where) >= sizeof host)
            return kn_err_set(err, KN_EINVAL, "--redis: \"%.100s\" is not unix:PATH or HOST:PORT", where);
        snprintf(host, sizeof host, "%.*s", (int)(port - where), where);
        int rc = getaddrinfo(host, port + 1, &hints, &found);
        if (rc) return kn_err_set(err, KN_EINVAL, "--redis %s: %s", where, gai_strerror(rc));
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
    return kn_err_set(err, KN_ECONFIG, "--redis %s: %s", where, strerror(e));
}

int cmd_up(const struct cli_options *o) {
    static struct up u;
    static struct worker_devices devices;
    struct kn_err err = {0};
    struct client *c = NULL;
    struct model_folders folders;
    char dir[KN_PATH_MAX];
    bool is_endpoint;
    int lock_fd = -1, there = 0;
    u.o = o;
    cli_catch_signals();
    struct supervise_config s = {.farm = &u.dir,
                                 .devices = &devices,
                                 .engine = o->engine,
                                 .listen = o->listen,
                                 .listen_count = o->listen_count,
                                 .data_port = o->data_port,
                                 .insecure = o->insecure,
                                 .allow_volatile = o->allow_volatile,
                                 .redis = o->redis};
    int rc = devices_choose(o, &devices, &err);
    supervise_size(o, &devices, &s.workers, &s.threads);
    if (s.workers > WORKERS_MAX) s.workers = WORKERS_MAX;
    u.workers = s.workers;
    if (rc == KN_OK) rc = farmdir_choose(o->farm, dir, &is_endpoint, &err);
    if (rc == KN_OK && is_endpoint)
        rc = kn_err_set(&err, KN_EINVAL, "--farm: %s is an endpoint; kiln up takes a folder", dir);
    if (rc == KN_OK && o->redis) rc = check_redis(o->redis, &err);
    if (rc == KN_OK && s.workers > 0) {
        rc = model_folders_choose(o, &folders, &err);
        s.model = folders.model;
        s.models = folders.models;
        s.model_dir_count = folders.count;
    }
    if (rc == KN_OK) rc = farmdir_create(dir, &u.dir, &err);
    if (rc == KN_OK) {
        rc = farmdir_lock(dir, &lock_fd, &err);
        if (rc == KN_EEXIST) return is_up(o, dir);
    }
    s.lock_fd = lock_fd;
    if (rc == KN_OK) rc = supervise_start(&s, &u.farm, &err);
    if (rc) {
        int status = cli_fail(&err);
        return status == CLI_INTERRUPTED ? status : CLI_BAD_INPUT;
    }
    rc = client_open(u.dir.endpoint, CLIENT_PATIENCE_MS, &c, &err);
    if (rc == KN_OK) rc = await_workers(&u, c, &there, &err);
    client_close(c);
    if (rc == KN_OK && s.workers > 0 && there == 0)
        rc = kn_err_set(&err, KN_EDEVICE, "no worker can be started: %s",
                        u.last_words[0] ? u.last_words : "none has come up in two minutes");
    if (rc) {
        kill(u.farm.pid, SIGTERM);
        supervise_end(&u.farm);
        int status = cli_fail(&err);
        return status == CLI_INTERRUPTED ? status : CLI_BAD_INPUT;
    }
    if (there < s.workers)
        cli_say("%d of %d workers cannot be started: %s", s.workers - there, s.workers, u.last_words);
    supervise_leave(&u.farm);
    tell_up(&u, there);
    return CLI_DONE;
}

int cmd_down(const struct cli_options *o) {
    struct kn_err err = {0};
    char dir[KN_PATH_MAX];
    bool is_endpoint, told = false;
    cli_catch_signals();
    int rc = farmdir_choose(o->farm, dir, &is_endpoint, &err);
    if (rc == KN_OK && is_endpoint)
        rc = kn_err_set(&err, KN_EINVAL, "--farm: %s is an endpoint; kiln down takes a farm's folder", dir);
    if (rc) return cli_fail(&err);
    pid_t pid = farmdir_pid(dir, "supervisor");
    if (!farmdir_is_locked(dir) || pid == 0) {
        cli_say("no farm is up at %s", dir);
        return CLI_NO_FARM;
    }
    uint64_t start = kn_clock_ms();
    if (kill(pid, o->now ? SIGQUIT : SIGTERM)) {
        cli_say("no farm is up at %s", dir);
        return CLI_NO_FARM;
    }
    while (farmdir_is_locked(dir)) {
        uint64_t waited = kn_clock_ms() - start;
        if (cli_interrupted) {
            cli_say("interrupted; the farm goes on ending");
            return CLI_INTERRUPTED;
        }
        if (waited > 3000 && !told) {
            cli_say("waiting for the workers to finish what they render");
            told = true;
        }
        if (waited > DOWN_MS) {
            cli_say("the farm at %s does not end; see %s/log", dir, dir);
            return CLI_FAILED;
        }
        usleep(20000);
    }
    return CLI_DONE;
}
