/* See supervise.h. */
#include "cli/farm/supervise.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/machine.h"
#include "base/supervise.h"
#include "cli/farm/guard.h"

#define ARGS_MAX 128
#define CHILDREN_MAX 258
#define PAUSE_MS 200
#define PAUSE_MAX_MS 5000
/* A worker that was killed was most likely killed by a task; it takes several deaths to find out by which,
 * and the batch waits for it. */
#define KILLED_PAUSE_MAX_MS 800
#define YOUNG_MS 4000  /* who dies younger than this waits longer the next time */
#define READY_MS 60000 /* for Redis to load its file, then for the coordinator to read it back */
#define DEATHS_START_MAX 3
#define DRAIN_MS 20000
#define END_MS 15000
#define WAIT_START_MS 20 /* between two looks while the farm starts, and later */
#define WAIT_MS 500
#define STOP_STEP_MS 20
#define FDS_MAX 1024       /* more than a starter has open */
#define ABANDONED_MS 60000 /* a private farm without its render goes on for so long */

enum phase { STARTING_REDIS, STARTING_COORDINATOR, UP };

struct process {              /* what the farm knows of a child beside the supervisor */
    char *argv[ARGS_MAX + 2]; /* strings: owned; behind the last, there may be died_of_memory */
    int argc;
    char words[512]; /* its last ones, or what the kernel did to it */
    bool refused; /* ended with status 1 the last time: what it was told is wrong, not what happened to it */
};

struct local_farm {
    const struct supervise_config *c;
    const struct farmdir *f;
    char ready_file[KN_PATH_MAX], endpoint_file[KN_PATH_MAX], log_dir[KN_PATH_MAX], run_dir[KN_PATH_MAX];
    struct kn_supervisor supervisor;
    struct kn_child v[CHILDREN_MAX];
    struct process processes[CHILDREN_MAX]; /* v[i]'s */
    size_t redis, coordinator, workers;     /* indexes; redis: SIZE_MAX when it is not ours */
    enum phase phase;
    uint64_t phase_ms;
    int news_fd;
    bool ending;
    uint64_t used_ms,
        abandoned_ms; /* of a private farm: when its render was last seen; for how long it goes on */
    int users_fd;
    struct guard guard;
    bool begun;   /* the first supervisor has cleared away what lay there */
    bool end_now; /* what is being rendered is not waited for */
};

static void news(struct local_farm *s, const char *fmt, ...) KN_PRINTF(2, 3);
static void news(struct local_farm *s, const char *fmt, ...) {
    char text[1000];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text - 1, fmt, ap);
    va_end(ap);
    if (n < 0) return;
    size_t len = (size_t)n < sizeof text - 2 ? (size_t)n : sizeof text - 2;
    for (size_t i = 0; i < len; i++)
        if (text[i] == '\n') text[i] = ' ';
    kn_info("supervisor_news %s", text);
    text[len++] = '\n';
    if (s->news_fd >= 0 &&
        write(s->news_fd, text, len) < 0) { /* nobody reads any more, or not fast enough: the log has it */
    }
}

/* ---- processes ---- */

static void add_arg(struct process *p, const char *fmt, ...) KN_PRINTF(2, 3);
static void add_arg(struct process *p, const char *fmt, ...) {
    if (p->argc == ARGS_MAX) return;
    va_list ap;
    va_start(ap, fmt);
    char *text = NULL;
    if (vasprintf(&text, fmt, ap) < 0) abort();
    va_end(ap);
    p->argv[p->argc++] = text;
}

static struct process *add_process(struct local_farm *s, const char *name, const char *program) {
    size_t i = s->supervisor.count++;
    struct process *p = &s->processes[i];
    add_arg(p, "%s", program);
    s->v[i].program = p->argv[0];
    s->v[i].argv = p->argv;
    snprintf(s->v[i].name, sizeof s->v[i].name, "%s", name);
    return p;
}

static void read_last_words(struct local_farm *s, size_t i) {
    char log[KN_PATH_MAX + sizeof s->v[i].name + 8];
    snprintf(log, sizeof log, "%s/%s.log", s->log_dir, s->v[i].name);
    kn_supervise_last_words(log, s->v[i].log_at, s->processes[i].words, sizeof s->processes[i].words);
}

/* Removes what an earlier Redis of this farm left: its socket, and the files that it was writing when it was killed.
 * None runs, since its folder is ours alone. */
static void clear_redis(const struct local_farm *s) {
    static const char *const folders[] = {"redis", "redis/appendonlydir"};
    char path[KN_PATH_MAX];
    unlink(s->f->redis_socket);
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        size_t n = farmdir_path(s->f, folders[i], path) == KN_OK ? kn_fs_remove_prefixed(path, "temp-") : 0;
        if (n) kn_info("strays_removed folder=%s count=%zu", folders[i], n);
    }
}

/* The same of files that supervisors, coordinators and whoever wrote pid files were replacing. */
static void clear_temps(const struct local_farm *s) {
    char path[KN_PATH_MAX + sizeof s->v[0].name + 8];
    size_t n = kn_fs_remove_temps(s->endpoint_file, 0) + kn_fs_remove_temps(s->ready_file, 0);
    snprintf(path, sizeof path, "%s/supervisor.pid", s->run_dir);
    n += kn_fs_remove_temps(path, 0);
    for (size_t i = 0; i < s->supervisor.count; i++) {
        snprintf(path, sizeof path, "%s/%s.pid", s->run_dir, s->v[i].name);
        n += kn_fs_remove_temps(path, 0);
    }
    if (n) kn_info("strays_removed folder=run count=%zu", n);
}

static void on_event(void *ctx, struct kn_child *ch, enum kn_child_event e) {
    struct local_farm *s = ctx;
    size_t i = (size_t)(ch - s->v);
    switch (e) {
    case KN_CHILD_STARTING: /* what is there of an earlier one would be taken for a sign of the new one */
        if (i == s->redis) clear_redis(s);
        if (i == s->coordinator) unlink(s->ready_file);
        break;
    case KN_CHILD_STARTED:
        kn_info("started process=%s pid=%d", ch->name, (int)ch->pid);
        break;
    case KN_CHILD_NOT_STARTED:
        kn_error("fork_failed process=%s error=%s", ch->name, strerror(errno));
        break;
    case KN_CHILD_NO_PID_FILE:
        kn_warn("pid_file_not_written process=%s", ch->name);
        break;
    case KN_CHILD_KILLED:
        kn_warn("killed process=%s", ch->name);
        break;
    }
}

static char died_of_memory[] = "--died-of-memory";

/* A worker that ends with status 0 does so on its own wish (it was drained) and is not started again. */
static bool on_end(void *ctx, struct kn_child *ch, int status) {
    struct local_farm *s = ctx;
    size_t i = (size_t)(ch - s->v);
    struct process *p = &s->processes[i];
    bool finished = WIFEXITED(status) && WEXITSTATUS(status) == 0 && i >= s->workers;
    char how[64];
    p->refused = WIFEXITED(status) && WEXITSTATUS(status) == 1;
    if (WIFSIGNALED(status))
        snprintf(how, sizeof how, "was ended by signal %d", WTERMSIG(status));
    else
        snprintf(how, sizeof how, "ended with status %d", WEXITSTATUS(status));
    if (ch->died_of_memory) {
        char text[16];
        snprintf(p->words, sizeof p->words, "the kernel killed it for want of memory (%s could be had then)",
                 kn_bytes_text(ch->memory_free, text));
    } else {
        read_last_words(s, i);
    }
    /* The next process tells the coordinator, so that no image is charged with it. */
    if (i >= s->workers) p->argv[p->argc] = ch->died_of_memory ? died_of_memory : NULL;
    if (s->ending) {
        kn_info("ended process=%s pid=%d how=\"%s\"", ch->name, (int)ch->pid, how);
        return false;
    }
    kn_warn("process_ended process=%s pid=%d how=\"%s\" deaths=%d pause_ms=%d", ch->name, (int)ch->pid, how,
            ch->deaths, finished ? 0 : ch->pause_ms);
    if (finished)
        news(s, "note %s has ended", ch->name);
    else
        news(s, "died %d %s %s%s%s", ch->deaths, ch->name, how, p->words[0] ? ": " : "", p->words);
    return !finished;
}

/* ---- the farm's start and end ---- */

/* True when Redis answers PING; it says -LOADING while it reads its file. */
static bool redis_answers(const char *path) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof a.sun_path) return false;
    strcpy(a.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return false;
    struct timeval wait = {.tv_sec = 1};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    char answer[16] = "";
    bool ok = connect(fd, (struct sockaddr *)&a, sizeof a) == 0 &&
              send(fd, "PING\r\n", 6, MSG_NOSIGNAL) == 6 && recv(fd, answer, 5, MSG_WAITALL) == 5 &&
              memcmp(answer, "+PONG", 5) == 0;
    close(fd);
    return ok;
}

static void move(struct local_farm *s, enum phase p) {
    s->phase = p;
    s->phase_ms = kn_clock_ms();
}

/* v[0…that) may run in this phase: first Redis, then the coordinator, then the workers. */
static size_t allowed(const struct local_farm *s) {
    return s->phase == STARTING_REDIS         ? s->coordinator
           : s->phase == STARTING_COORDINATOR ? s->workers
                                              : s->supervisor.count;
}

/* 0: go on; <0: the farm cannot be started (told). */
static int advance(struct local_farm *s) {
    if (s->phase != UP) {
        size_t i = s->phase == STARTING_REDIS ? s->redis : s->coordinator;
        const struct process *p = &s->processes[i];
        if (p->refused || s->v[i].deaths >= DEATHS_START_MAX || kn_clock_ms() - s->phase_ms > READY_MS) {
            if (s->v[i].pid) read_last_words(s, i);
            news(s, "failed %s does not start: %s", s->v[i].name, p->words[0] ? p->words : "no answer");
            return KN_ECONFIG;
        }
    }
    if (s->phase == STARTING_REDIS && redis_answers(s->f->redis_socket)) move(s, STARTING_COORDINATOR);
    if (s->phase == STARTING_COORDINATOR && s->v[s->coordinator].pid && kn_fs_exists(s->ready_file)) {
        struct kn_err err = {0};
        char line[KN_ENDPOINT_MAX + 2];
        int n = snprintf(line, sizeof line, "%s\n", s->f->endpoint);
        if (kn_fs_replace(s->endpoint_file, line, (size_t)n, false, &err)) {
            news(s, "failed %s", err.text);
            return err.code;
        }
        move(s, UP);
        news(s, "ready");
    }
    kn_supervise_start(&s->supervisor, 0, allowed(s));
    return KN_OK;
}

/* The coordinator and Redis are never killed in haste: they have little to do, and they are the ones with the data. A
 * SIGQUIT that comes meanwhile ends the patience. */
static void end_farm(struct local_farm *s) {
    const uint64_t quit = KN_SIGNAL_BIT(SIGQUIT);
    struct kn_ending workers = {.patience_ms = DRAIN_MS, .kill_on = quit, .now = s->end_now};
    struct kn_ending coordinator = {.patience_ms = END_MS, .kill_on = quit};
    struct kn_ending redis = {.patience_ms = END_MS, .kill_on = quit};
    s->ending = true;
    unlink(s->endpoint_file);
    kn_supervise_end(&s->supervisor, s->workers, s->supervisor.count, &workers);
    kn_supervise_end(&s->supervisor, s->coordinator, s->workers, &coordinator);
    if (s->redis != SIZE_MAX) kn_supervise_end(&s->supervisor, s->redis, s->coordinator, &redis);
}

/* True when a process of a farm has the number of this pid file; it may have been given to another. */
static bool is_left(const char *dir, const char *name, pid_t *pid) {
    char path[64], comm[32] = "";
    *pid = farmdir_pid(dir, name);
    if (!*pid) return false;
    snprintf(path, sizeof path, "/proc/%d/comm", (int)*pid);
    FILE *f = fopen(path, "re");
    if (!f) return false;
    if (!fgets(comm, sizeof comm, f)) comm[0] = '\0';
    fclose(f);
    return strncmp(comm, "redis-server", 12) == 0 || strncmp(comm, "kiln-", 5) == 0;
}

size_t supervise_leftovers(const struct farmdir *f, bool end) {
    static const char *const order[] = {"worker-", "coordinator", "redis"};
    char run[KN_PATH_MAX];
    size_t found = 0;
    if (farmdir_path(f, "run", run)) return 0;
    for (size_t i = 0; i < sizeof order / sizeof order[0]; i++) {
        DIR *d = opendir(run);
        for (struct dirent *e; d && (e = readdir(d));) {
            char name[64];
            const char *dot = strrchr(e->d_name, '.');
            pid_t pid;
            if (!dot || strcmp(dot, ".pid") != 0 || (size_t)(dot - e->d_name) >= sizeof name ||
                strncmp(e->d_name, order[i], strlen(order[i])) != 0)
                continue;
            snprintf(name, sizeof name, "%.*s", (int)(dot - e->d_name), e->d_name);
            if (!is_left(f->dir, name, &pid)) continue;
            found++;
            if (!end) continue;
            kn_warn("ending_leftover process=%s pid=%d", name, (int)pid);
            kill(pid, SIGTERM);
            for (int k = 0; k < 1500 && kill(pid, 0) == 0; k++) {
                if (k == 1000) kill(pid, SIGKILL);
                usleep(10000);
            }
            farmdir_remove_pid(f, name);
        }
        if (d) closedir(d);
    }
    return found;
}

/* ---- what is started, and with which words ---- */

static void plan_redis(struct local_farm *s) {
    static const char *const fixed[] = {"--port",
                                        "0",
                                        "--unixsocketperm",
                                        "600",
                                        "--appendonly",
                                        "yes",
                                        "--appendfsync",
                                        "always",
                                        "--no-appendfsync-on-rewrite",
                                        "no",
                                        "--maxmemory-policy",
                                        "noeviction",
                                        "--save",
                                        "",
                                        "--daemonize",
                                        "no"};
    char program[KN_PATH_MAX];
    farmdir_redis(program);
    s->redis = s->supervisor.count;
    struct process *p = add_process(s, "redis", program);
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) add_arg(p, "%s", fixed[i]);
    add_arg(p, "--unixsocket");
    add_arg(p, "%s", s->f->redis_socket);
    add_arg(p, "--dir");
    add_arg(p, "%s/redis", s->f->dir);
}

static int plan_coordinator(struct local_farm *s, struct kn_err *err) {
    const struct supervise_config *c = s->c;
    char program[KN_PATH_MAX];
    int rc = farmdir_sibling("kiln-coordinator", program, err);
    if (rc) return rc;
    s->coordinator = s->supervisor.count;
    struct process *p = add_process(s, "coordinator", program);
    add_arg(p, "--dir");
    add_arg(p, "%s", c->pictures ? c->pictures : s->f->dir);
    add_arg(p, "--redis");
    if (c->redis)
        add_arg(p, "%s", c->redis);
    else
        add_arg(p, "unix:%s", s->f->redis_socket);
    if (c->pictures) { /* they may be copied to another place, and Redis is not there then */
        add_arg(p, "--store-mark");
        add_arg(p, "%s/store.mark", s->f->dir);
    }
    add_arg(p, "--listen");
    add_arg(p, "%s", s->f->endpoint);
    for (size_t i = 0; i < c->listen_count; i++) {
        add_arg(p, "--listen");
        add_arg(p, "%s", c->listen[i]);
    }
    if (c->data_port) {
        add_arg(p, "--data-port");
        add_arg(p, "%d", c->data_port);
    }
    if (c->allow_volatile) add_arg(p, "--allow-volatile");
    if (c->private_farm) add_arg(p, "--no-scrub"); /* its pictures are moved to the output folder */
    if (c->default_model) {
        add_arg(p, "--default-model");
        add_arg(p, "%s", c->default_model);
    }
    add_arg(p, "--ready-file");
    add_arg(p, "%s", s->ready_file);
    return KN_OK;
}

static int plan_workers(struct local_farm *s, struct kn_err *err) {
    const struct supervise_config *c = s->c;
    char program[KN_PATH_MAX], name[32];
    int rc = farmdir_sibling("kiln-worker", program, err);
    if (rc) return rc;
    s->workers = s->supervisor.count;
    for (int w = 0; w < c->size->workers && s->supervisor.count < CHILDREN_MAX; w++) {
        snprintf(name, sizeof name, "worker-%d", w);
        s->v[s->supervisor.count].killed_pause_max_ms = KILLED_PAUSE_MAX_MS;
        struct process *p = add_process(s, name, program);
        add_arg(p, "--join");
        add_arg(p, "%s", s->f->endpoint);
        add_arg(p, "--name");
        add_arg(p, "%s", name);
        add_arg(p, "--threads");
        add_arg(p, "%d", c->size->nodes ? c->size->machine.node[w].cores : c->size->threads);
        if (c->size->nodes) {
            add_arg(p, "--node");
            add_arg(p, "%d", c->size->machine.node[w].number);
        }
        if (c->size->memory_mib) {
            add_arg(p, "--memory");
            add_arg(p, "%" PRIu64, c->size->memory_mib);
        }
        if (c->devices && w < c->devices->count) {
            add_arg(p, "--device");
            add_arg(p, "%s", c->devices->v[w]);
        }
        if (c->engine) {
            add_arg(p, "--engine");
            add_arg(p, "%s", c->engine);
        }
        if (c->model) {
            add_arg(p, "--model");
            add_arg(p, "%s", c->model);
        }
        for (size_t i = 0; i < c->model_dir_count; i++) {
            add_arg(p, "--models");
            add_arg(p, "%s", c->models[i]);
        }
    }
    return KN_OK;
}

static int plan(struct local_farm *s, struct kn_err *err) {
    int rc = farmdir_path(s->f, "run/ready", s->ready_file);
    if (rc == KN_OK) rc = farmdir_path(s->f, "endpoint", s->endpoint_file);
    if (rc == KN_OK) rc = farmdir_path(s->f, "log", s->log_dir);
    if (rc == KN_OK) rc = farmdir_path(s->f, "run", s->run_dir);
    if (rc) return kn_err_set(err, rc, "%.200s: the path is too long", s->f->dir);
    s->supervisor = (struct kn_supervisor){.v = s->v,
                                           .pause_ms = PAUSE_MS,
                                           .pause_max_ms = PAUSE_MAX_MS,
                                           .young_ms = YOUNG_MS,
                                           .log_dir = s->log_dir,
                                           .pid_dir = s->run_dir,
                                           .event = on_event,
                                           .ended = on_end,
                                           .ctx = s,
                                           .stay = true};
    s->redis = SIZE_MAX;
    if (!s->c->redis) plan_redis(s);
    rc = plan_coordinator(s, err);
    return rc ? rc : plan_workers(s, err);
}

/* ---- the supervisor's process ---- */

/* True when the render of a private farm has been gone for long enough; from then on no other can use it. */
static bool is_abandoned(struct local_farm *s) {
    uint64_t now = kn_clock_ms();
    if (farmdir_is_used(s->f->dir)) s->used_ms = now;
    return now - s->used_ms >= s->abandoned_ms && farmdir_use(s->f->dir, &s->users_fd, NULL) == KN_OK;
}

/* This process supervises from here on. Another may have done so before: then its farm is in `s`, and goes on. */
static int begin_to_supervise(struct local_farm *s, bool again) {
    static const int signals[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, GUARD_GONE, 0};
    if (again && s->supervisor.signal_fd > 0) close(s->supervisor.signal_fd);
    int rc = kn_supervise_begin(&s->supervisor, signals);
    if (rc == KN_OK) rc = farmdir_write_pid(s->f, "supervisor", getpid(), NULL);
    if (again) kn_info("took_over pid=%d", (int)getpid());
    return rc;
}

static int watch(struct local_farm *s) {
    while (!s->ending) {
        if (advance(s)) break;
        uint64_t signals =
            kn_supervise_wait(&s->supervisor, NULL, 0, s->phase == UP ? WAIT_MS : WAIT_START_MS);
        if (signals & KN_SIGNAL_BIT(GUARD_GONE)) {
            kn_warn("guard_killed");
            signals &= ~KN_SIGNAL_BIT(GUARD_GONE);
            int rc = begin_to_supervise(s, guard_split(&s->guard, true));
            if (rc) return rc;
        }
        if (signals & KN_SIGNAL_BIT(SIGQUIT)) s->end_now = true;
        if (s->c->private_farm && is_abandoned(s)) {
            kn_info("abandoned");
            s->end_now = true; /* nobody waits for what is being rendered */
        }
        if (signals || s->end_now) break;
    }
    end_farm(s);
    return KN_OK;
}

static _Noreturn void supervise(struct local_farm *s) {
    char log[KN_PATH_MAX + 64];
    setsid();
    signal(SIGPIPE, SIG_IGN);
    /* Closes what else the starter had open, the lock of its output folder for one: it is none of the farm's. */
    for (int fd = 3; fd < FDS_MAX; fd++)
        if (fd != s->c->lock_fd && fd != s->news_fd && fd != s->guard.ends[0] && fd != s->guard.ends[1])
            close(fd);
    if (chdir("/")) _exit(1);
    snprintf(log, sizeof log, "%s/log/supervisor.log", s->f->dir);
    int in = open("/dev/null", O_RDONLY), out = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (in < 0 || out < 0) _exit(1);
    dup2(in, 0);
    dup2(out, 1);
    dup2(out, 2);
    if (in > 2) close(in);
    if (out > 2) close(out);
    kn_log_init("supervisor", KN_LOG_INFO);
    kn_log_rotate(LOG_FILE_BYTES_MAX);

    bool again = guard_split(&s->guard, false);
    int rc = begin_to_supervise(s, again);
    if (rc == KN_OK && !s->begun) {
        supervise_leftovers(s->f, true); /* two Redis on one file would be the end of it */
        clear_temps(s);
        move(s, s->redis == SIZE_MAX ? STARTING_COORDINATOR : STARTING_REDIS);
        s->used_ms = kn_clock_ms();
        s->begun = true;
    }
    if (rc == KN_OK) rc = watch(s);
    if (rc && s->begun) abort(); /* the guard tries again */
    farmdir_remove_pid(s->f, "supervisor");
    unlink(s->ready_file);
    kn_info("ended");
    rc = farmdir_remove_tree(s->f->runtime, NULL); /* sockets only */
    (void)rc;
    _exit(0); /* the lock goes with it and the guard */
}

int supervise_start(const struct supervise_config *c, struct supervise_handle *out, struct kn_err *err) {
    int pipe_news[2];
    const char *abandoned = getenv("KILN_ABANDONED_MS"); /* for tests, which cannot wait for a minute */
    /* Shared: whichever process supervises finds what the one before knew. */
    struct local_farm *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (s == MAP_FAILED) {
        close(c->lock_fd);
        return kn_err_set(err, KN_ENOMEM, "out of memory");
    }
    s->c = c;
    s->f = c->farm;
    s->users_fd = -1;
    s->abandoned_ms = abandoned && abandoned[0] ? strtoull(abandoned, NULL, 10) : ABANDONED_MS;
    int rc = plan(s, err);
    if (rc == KN_OK && (guard_init(&s->guard) || pipe2(pipe_news, O_CLOEXEC | O_NONBLOCK)))
        rc = kn_err_set(err, KN_EIO, "pipe: %s", strerror(errno));
    if (rc) {
        close(c->lock_fd);
        return rc;
    }
    s->supervisor.ends_fd = s->guard.ends[0];
    s->news_fd = pipe_news[1];
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) {
        close(c->lock_fd);
        return kn_err_set(err, KN_EIO, "fork: %s", strerror(errno));
    }
    if (pid == 0) {
        close(pipe_news[0]);
        supervise(s);
    }
    close(c->lock_fd);
    close(pipe_news[1]);
    close(s->guard.ends[0]);
    close(s->guard.ends[1]);
    *out = (struct supervise_handle){.pid = pid, .news_fd = pipe_news[0]};
    snprintf(out->dir, sizeof out->dir, "%s", c->farm->dir);
    if (c->private_farm) cli_farm_pid = pid;
    for (size_t i = 0; i < s->supervisor.count; i++)
        for (int k = 0; k < s->processes[i].argc; k++) free(s->processes[i].argv[k]);
    munmap(s, sizeof *s);

    for (;;) {
        const char *line;
        bool alive = supervise_news(out, &line);
        if (line && strcmp(line, "ready") == 0) return KN_OK;
        if (line && strncmp(line, "failed ", 7) == 0)
            rc = kn_err_set(err, KN_ECONFIG, "the farm cannot be started: %s", line + 7);
        else if (!line && !alive)
            rc = kn_err_set(err, KN_EINTERNAL, "the farm cannot be started: see %s/log", c->farm->dir);
        else if (cli_interrupted)
            rc = kn_err_set(err, KN_ECANCELED, "interrupted");
        if (rc) {
            supervise_end(out);
            return rc;
        }
        if (!line) {
            struct pollfd p = {.fd = out->news_fd, .events = POLLIN};
            poll(&p, 1, 100);
        }
    }
}

bool supervise_news(struct supervise_handle *h, const char **out) {
    static char line[sizeof h->line];
    *out = NULL;
    bool alive = h->news_fd >= 0;
    for (;;) {
        char *end = memchr(h->line, '\n', h->line_len);
        if (end) {
            size_t len = (size_t)(end - h->line);
            memcpy(line, h->line, len);
            line[len] = '\0';
            memmove(h->line, end + 1, h->line_len - len - 1);
            h->line_len -= len + 1;
            *out = line;
            return true;
        }
        if (h->news_fd < 0) return false;
        if (h->line_len == sizeof h->line) h->line_len = 0; /* never: lines are shorter */
        ssize_t n = read(h->news_fd, h->line + h->line_len, sizeof h->line - h->line_len);
        if (n > 0) {
            h->line_len += (size_t)n;
            continue;
        }
        if (n == 0) {
            close(h->news_fd);
            h->news_fd = -1;
            return false;
        }
        return alive;
    }
}

void supervise_end(struct supervise_handle *h) {
    kill(h->pid, SIGQUIT);
    for (int tries = 0; waitpid(h->pid, NULL, WNOHANG) == 0; tries++) usleep(tries < 100 ? 2000 : 20000);
    if (!supervise_stop(h->dir)) cli_say("%s: the farm does not end", h->dir); /* that one had been killed */
    if (h->news_fd >= 0) close(h->news_fd);
    h->news_fd = -1;
}

bool supervise_stop(const char *dir) {
    const int steps = (END_MS + END_MS) / STOP_STEP_MS; /* as long as the coordinator and Redis may take */
    for (int i = 0; i < steps && farmdir_is_locked(dir); i++) {
        pid_t pid = farmdir_pid(dir, "supervisor");
        if (pid && i % 50 == 0) kill(pid, SIGQUIT);
        usleep(STOP_STEP_MS * 1000);
    }
    return !farmdir_is_locked(dir);
}

void supervise_leave(struct supervise_handle *h) {
    if (h->news_fd >= 0) close(h->news_fd);
    h->news_fd = -1;
}

void supervise_last_words(const struct farmdir *f, const char *process, char *out, size_t out_max) {
    char path[KN_PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/log/%s.log", f->dir, process);
    kn_supervise_last_words(path, 0, out, out_max);
}
