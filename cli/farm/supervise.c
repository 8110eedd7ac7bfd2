/* See supervise.h. */
#include "cli/farm/supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

#define ARGS_MAX 128
#define CHILDREN_MAX 258
#define KILLED_PAUSE_MAX_MS 800
#define YOUNG_MS 4000  /* who dies younger than this waits longer the next time */
#define READY_MS 60000 /* for Redis to load its file, then for the coordinator to read it back */
#define DRAIN_MS 20000
#define END_MS 15000
#define FDS_MAX 1024 /* more than a starter has open */

enum phase { STARTING_REDIS, STARTING_COORDINATOR, UP };

struct child {
    char name[24];
    char *argv[ARGS_MAX + 1]; /* strings: owned */
    int argc;
    pid_t pid; /* 0: not running */
    uint64_t started_ms, start_at_ms;
    off_t log_at;    /* where its log ended when it was started */
    int deaths;      /* in a row, young */
    char words[512]; /* its last ones */
    bool refused;  /* ended with status 1 the last time: what it was told is wrong, not what happened to it */
    bool finished; /* ended on its own wish */
};

struct supervisor {
    const struct supervise_config *c;
    const struct farmdir *f;
    char ready_file[KN_PATH_MAX], endpoint_file[KN_PATH_MAX];
    struct child children[CHILDREN_MAX];
    size_t count, redis, coordinator, workers; /* indexes; SIZE_MAX: none */
    enum phase phase;
    uint64_t phase_ms;
    int signal_fd, news_fd, life_fd;
    bool ending;
    bool abandoned; /* a private farm whose starter is gone: it ends when nobody renders on it any more */
    int users_fd;
};

static void news(struct supervisor *s, const char *fmt, ...) KN_PRINTF(2, 3);
static void news(struct supervisor *s, const char *fmt, ...) {
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

static void add_arg(struct child *ch, const char *fmt, ...) KN_PRINTF(2, 3);
static void add_arg(struct child *ch, const char *fmt, ...) {
    if (ch->argc == ARGS_MAX) return;
    va_list ap;
    va_start(ap, fmt);
    char *text = NULL;
    if (vasprintf(&text, fmt, ap) < 0) abort();
    va_end(ap);
    ch->argv[ch->argc++] = text;
}

static struct child *add_child(struct supervisor *s, const char *fmt, int number) {
    struct child *ch = &s->children[s->count++];
    snprintf(ch->name, sizeof ch->name, fmt, number);
    return ch;
}

/* In the child: from here to exec, nothing but plain system calls. */
static _Noreturn void become(const struct child *ch, const char *log, pid_t parent) {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    int in = open("/dev/null", O_RDONLY), out = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (in < 0 || out < 0) _exit(126);
    dup2(in, 0);
    dup2(out, 1);
    dup2(out, 2);
    if (in > 2) close(in);
    if (out > 2) close(out);
    execvp(ch->argv[0], ch->argv);
    dprintf(2, "%s: %s\n", ch->argv[0], strerror(errno));
    _exit(127);
}

static void start(struct supervisor *s, struct child *ch) {
    char log[KN_PATH_MAX + 64];
    snprintf(log, sizeof log, "%s/log/%s.log", s->f->dir, ch->name);
    struct stat st;
    ch->log_at = stat(log, &st) == 0 ? st.st_size : 0;
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) become(ch, log, parent);
    ch->started_ms = kn_clock_ms();
    if (pid < 0) {
        kn_error("fork_failed process=%s error=%s", ch->name, strerror(errno));
        ch->start_at_ms = ch->started_ms + 1000;
        return;
    }
    ch->pid = pid;
    ch->start_at_ms = 0;
    int rc = farmdir_write_pid(s->f, ch->name, pid, NULL);
    if (rc) kn_warn("pid_file_not_written process=%s", ch->name);
    kn_info("started process=%s pid=%d", ch->name, (int)pid);
}

int supervise_pause_ms(int deaths) {
    int ms = 200;
    for (int i = 1; i < deaths && ms < 5000; i++) ms *= 2;
    return ms < 5000 ? ms : 5000;
}

/* The last line behind `from` that is no everyday event; "" if there is none. */
static void last_words(const struct farmdir *f, const char *process, off_t from, char *out, size_t out_max) {
    char path[KN_PATH_MAX + 64], tail[4097];
    snprintf(path, sizeof path, "%s/log/%s.log", f->dir, process);
    out[0] = '\0';
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    off_t size = lseek(fd, 0, SEEK_END);
    if (size - from > 4096) from = size - 4096;
    ssize_t n = pread(fd, tail, sizeof tail - 1, from);
    close(fd);
    if (n <= 0) return;
    tail[n] = '\0';
    for (char *line; n > 0; n = line - tail) {
        tail[n] = '\0';
        while (n > 0 && (tail[n - 1] == '\n' || tail[n - 1] == '\r')) tail[--n] = '\0';
        line = strrchr(tail, '\n');
        line = line ? line + 1 : tail;
        char level[8] = "";
        if (line[0] && (sscanf(line, "%*s %7s", level) != 1 ||
                        (strcmp(level, "info") != 0 && strcmp(level, "debug") != 0))) {
            snprintf(out, out_max, "%s", line);
            return;
        }
    }
}

void supervise_last_words(const struct farmdir *f, const char *process, char *out, size_t out_max) {
    last_words(f, process, 0, out, out_max);
}

static void reap(struct supervisor *s) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        for (size_t i = 0; i < s->count; i++) {
            struct child *ch = &s->children[i];
            if (ch->pid != pid) continue;
            uint64_t now = kn_clock_ms();
            ch->pid = 0;
            farmdir_remove_pid(s->f, ch->name);
            ch->deaths = now - ch->started_ms < YOUNG_MS ? ch->deaths + 1 : 1;
            ch->refused = WIFEXITED(status) && WEXITSTATUS(status) == 1;
            ch->finished = WIFEXITED(status) && WEXITSTATUS(status) == 0 && i >= s->workers;
            int pause = supervise_pause_ms(ch->deaths);
            /* A worker that was killed was most likely killed by a task; it takes several deaths to find out
             * by which, and the batch waits for it. */
            if (i >= s->workers && WIFSIGNALED(status) && pause > KILLED_PAUSE_MAX_MS)
                pause = KILLED_PAUSE_MAX_MS;
            ch->start_at_ms = now + (uint64_t)pause;
            char how[64];
            if (WIFSIGNALED(status))
                snprintf(how, sizeof how, "was ended by signal %d", WTERMSIG(status));
            else
                snprintf(how, sizeof how, "ended with status %d", WEXITSTATUS(status));
            last_words(s->f, ch->name, ch->log_at, ch->words, sizeof ch->words);
            if (s->ending) {
                kn_info("ended process=%s pid=%d how=\"%s\"", ch->name, (int)pid, how);
                continue;
            }
            kn_warn("process_ended process=%s pid=%d how=\"%s\" deaths=%d pause_ms=%d", ch->name, (int)pid,
                    how, ch->deaths, ch->finished ? 0 : pause);
            if (ch->finished)
                news(s, "note %s has ended", ch->name);
            else
                news(s, "died %d %s %s%s%s", ch->deaths, ch->name, how, ch->words[0] ? ": " : "", ch->words);
        }
    }
}

/* Whether Redis answers PING; it says -LOADING while it reads its file. */
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

static void move(struct supervisor *s, enum phase p) {
    s->phase = p;
    s->phase_ms = kn_clock_ms();
}

/* 0: go on; <0: it cannot be started (told). */
static int advance(struct supervisor *s) {
    uint64_t now = kn_clock_ms();
    if (s->phase != UP) {
        struct child *ch = &s->children[s->phase == STARTING_REDIS ? s->redis : s->coordinator];
        if (ch->refused || ch->deaths >= 3 || now - s->phase_ms > READY_MS) {
            if (ch->pid) last_words(s->f, ch->name, ch->log_at, ch->words, sizeof ch->words);
            news(s, "failed %s does not start: %s", ch->name, ch->words[0] ? ch->words : "no answer");
            return KN_ECONFIG;
        }
    }
    if (s->phase == STARTING_REDIS && redis_answers(s->f->redis_socket)) move(s, STARTING_COORDINATOR);
    if (s->phase == STARTING_COORDINATOR && s->children[s->coordinator].pid && kn_fs_exists(s->ready_file)) {
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
    for (size_t i = 0; i < s->count; i++) {
        struct child *ch = &s->children[i];
        if (ch->pid || ch->finished || now < ch->start_at_ms) continue;
        if (i != s->redis && s->phase == STARTING_REDIS) continue;
        if (i >= s->workers && s->phase != UP) continue;
        if (i == s->redis) unlink(s->f->redis_socket);
        if (i == s->coordinator) unlink(s->ready_file);
        start(s, ch);
    }
    return KN_OK;
}

static bool any_left(const struct supervisor *s, size_t from, size_t to) {
    for (size_t i = from; i < to; i++)
        if (s->children[i].pid) return true;
    return false;
}

/* Sends sig to children[from…to) and waits for their ends; then kills. SIGQUIT meanwhile ends the patience.
 */
static void end_children(struct supervisor *s, size_t from, size_t to, int sig, int patience_ms, bool *now) {
    uint64_t end = kn_clock_ms() + (uint64_t)patience_ms;
    for (size_t i = from; i < to; i++)
        if (s->children[i].pid) kill(s->children[i].pid, *now ? SIGKILL : sig);
    bool killed = *now;
    while (any_left(s, from, to)) {
        struct pollfd p = {.fd = s->signal_fd, .events = POLLIN};
        struct signalfd_siginfo si;
        poll(&p, 1, 100);
        while (read(s->signal_fd, &si, sizeof si) == (ssize_t)sizeof si)
            if (si.ssi_signo == SIGQUIT) *now = true;
        reap(s);
        if (!killed && (*now || kn_clock_ms() > end)) {
            for (size_t i = from; i < to; i++) {
                if (!s->children[i].pid) continue;
                kn_warn("killed process=%s", s->children[i].name);
                kill(s->children[i].pid, SIGKILL);
            }
            killed = true;
        }
    }
}

/* `now`: what is being rendered is not waited for. The coordinator and Redis are never killed in haste: they
 * have little to do, and they are the ones with the data. */
static void end_farm(struct supervisor *s, bool now) {
    bool haste = false;
    s->ending = true;
    unlink(s->endpoint_file);
    end_children(s, s->workers, s->count, SIGTERM, DRAIN_MS, &now);
    end_children(s, s->coordinator, s->workers, SIGTERM, END_MS, &haste);
    haste = false;
    if (s->redis != SIZE_MAX) end_children(s, s->redis, s->coordinator, SIGTERM, END_MS, &haste);
}

/* What a supervisor that was killed may have left running: two Redis on one file would be the end of it. */
static void end_leftovers(struct supervisor *s) {
    for (size_t i = s->count; i-- > 0;) {
        pid_t pid = farmdir_pid(s->f->dir, s->children[i].name);
        if (!pid) continue;
        char path[64], comm[32] = "";
        snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
        FILE *f = fopen(path, "re");
        if (f) {
            if (!fgets(comm, sizeof comm, f)) comm[0] = '\0';
            fclose(f);
        }
        if (strncmp(comm, "redis-server", 12) != 0 && strncmp(comm, "kiln-", 5) != 0)
            continue; /* the number was given to another */
        kn_warn("ending_leftover process=%s pid=%d", s->children[i].name, (int)pid);
        kill(pid, SIGTERM);
        for (int k = 0; k < 150 && kill(pid, 0) == 0; k++) {
            if (k == 100) kill(pid, SIGKILL);
            usleep(100000);
        }
    }
}

static int plan(struct supervisor *s, struct kn_err *err) {
    const struct supervise_config *c = s->c;
    char program[KN_PATH_MAX], name[32];
    int rc = farmdir_path(s->f, "run/ready", s->ready_file);
    if (rc == KN_OK) rc = farmdir_path(s->f, "endpoint", s->endpoint_file);
    if (rc) return kn_err_set(err, rc, "%.200s: the path is too long", s->f->dir);
    s->redis = SIZE_MAX;
    if (!c->redis) {
        s->redis = s->count;
        struct child *ch = add_child(s, "redis", 0);
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
        farmdir_redis(program);
        add_arg(ch, "%s", program);
        for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) add_arg(ch, "%s", fixed[i]);
        add_arg(ch, "--unixsocket");
        add_arg(ch, "%s", s->f->redis_socket);
        add_arg(ch, "--dir");
        add_arg(ch, "%s/redis", s->f->dir);
    }
    s->coordinator = s->count;
    struct child *ch = add_child(s, "coordinator", 0);
    rc = farmdir_sibling("kiln-coordinator", program, err);
    if (rc) return rc;
    add_arg(ch, "%s", program);
    add_arg(ch, "--dir");
    add_arg(ch, "%s", s->f->dir);
    add_arg(ch, "--redis");
    if (c->redis)
        add_arg(ch, "%s", c->redis);
    else
        add_arg(ch, "unix:%s", s->f->redis_socket);
    add_arg(ch, "--listen");
    add_arg(ch, "%s", s->f->endpoint);
    for (size_t i = 0; i < c->listen_count; i++) {
        add_arg(ch, "--listen");
        add_arg(ch, "%s", c->listen[i]);
    }
    if (c->data_port) {
        add_arg(ch, "--data-port");
        add_arg(ch, "%d", c->data_port);
    }
    if (c->insecure) add_arg(ch, "--insecure");
    if (c->allow_volatile) add_arg(ch, "--allow-volatile");
    add_arg(ch, "--ready-file");
    add_arg(ch, "%s", s->ready_file);

    s->workers = s->count;
    rc = farmdir_sibling("kiln-worker", program, err);
    if (rc) return rc;
    for (int w = 0; w < c->workers && s->count < CHILDREN_MAX; w++) {
        ch = add_child(s, "worker-%d", w);
        snprintf(name, sizeof name, "worker-%d", w);
        add_arg(ch, "%s", program);
        add_arg(ch, "--join");
        add_arg(ch, "%s", s->f->endpoint);
        add_arg(ch, "--name");
        add_arg(ch, "%s", name);
        add_arg(ch, "--threads");
        add_arg(ch, "%d", c->threads);
        if (c->devices && w < c->devices->count) {
            add_arg(ch, "--device");
            add_arg(ch, "%s", c->devices->v[w]);
        }
        if (c->engine) {
            add_arg(ch, "--engine");
            add_arg(ch, "%s", c->engine);
        }
        if (c->model) {
            add_arg(ch, "--model");
            add_arg(ch, "%s", c->model);
        }
        for (size_t i = 0; i < c->model_dir_count; i++) {
            add_arg(ch, "--models");
            add_arg(ch, "%s", c->models[i]);
        }
    }
    return KN_OK;
}

static void watch(struct supervisor *s) {
    move(s, s->redis == SIZE_MAX ? STARTING_COORDINATOR : STARTING_REDIS);
    bool now = false, told = false;
    for (;;) {
        if (advance(s)) break;
        struct pollfd p[2] = {{.fd = s->signal_fd, .events = POLLIN}, {.fd = s->life_fd, .events = POLLIN}};
        int timeout = s->phase == UP ? 500 : 20;
        uint64_t at = kn_clock_ms();
        for (size_t i = 0; i < s->count; i++) {
            struct child *ch = &s->children[i];
            if (ch->pid || ch->finished || ch->start_at_ms == 0) continue;
            int due = ch->start_at_ms > at ? (int)(ch->start_at_ms - at) : 1;
            if (due < timeout) timeout = due;
        }
        poll(p, s->life_fd >= 0 ? 2 : 1, timeout);
        struct signalfd_siginfo si;
        bool end = false;
        while (read(s->signal_fd, &si, sizeof si) == (ssize_t)sizeof si) {
            if (si.ssi_signo == SIGCHLD) continue;
            end = true;
            now = now || si.ssi_signo == SIGQUIT;
        }
        reap(s);
        if (s->life_fd >= 0 && p[1].revents) {
            char byte;
            if (read(s->life_fd, &byte, 1) >= 0) {
                close(s->life_fd);
                s->life_fd = -1;
                s->abandoned = true;
            }
        }
        if (s->abandoned) {
            if (farmdir_end_use(s->f->dir, &s->users_fd))
                end = now = true; /* nobody waits for what is being rendered */
            else if (!told)
                news(s, "used");
            told = true;
        }
        if (end) break;
    }
    end_farm(s, now);
}

static _Noreturn void supervise(struct supervisor *s) {
    char log[KN_PATH_MAX + 64];
    setsid();
    prctl(PR_SET_NAME, "kiln-supervisor"); /* for ps: it is not the command that started it */
    signal(SIGPIPE, SIG_IGN);
    /* What else the starter had open is none of the farm's: the lock of its output folder, for one. */
    for (int fd = 3; fd < FDS_MAX; fd++)
        if (fd != s->c->lock_fd && fd != s->news_fd && fd != s->life_fd) close(fd);
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

    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGINT);
    sigaddset(&mask, SIGHUP);
    sigaddset(&mask, SIGQUIT);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    s->signal_fd = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
    int rc = s->signal_fd < 0 ? KN_EIO : farmdir_write_pid(s->f, "supervisor", getpid(), NULL);
    farmdir_remove_pid(s->f, "private");
    if (rc == KN_OK && s->c->private_farm) rc = farmdir_write_pid(s->f, "private", getpid(), NULL);
    if (rc == KN_OK) {
        end_leftovers(s);
        watch(s);
    }
    farmdir_remove_pid(s->f, "private");
    farmdir_remove_pid(s->f, "supervisor");
    unlink(s->ready_file);
    kn_info("ended");
    rc = farmdir_remove_tree(s->f->runtime, NULL); /* sockets only */
    (void)rc;
    _exit(0); /* the lock goes with it */
}

int supervise_start(const struct supervise_config *c, struct supervise_handle *out, struct kn_err *err) {
    static struct supervisor s; /* large; one farm a process */
    int pipe_news[2], pipe_life[2] = {-1, -1};
    memset(&s, 0, sizeof s);
    s.c = c;
    s.f = c->farm;
    s.life_fd = s.users_fd = -1;
    int rc = plan(&s, err);
    if (rc) {
        close(c->lock_fd);
        return rc;
    }
    if (pipe2(pipe_news, O_CLOEXEC | O_NONBLOCK) || (c->private_farm && pipe2(pipe_life, O_CLOEXEC))) {
        close(c->lock_fd);
        return kn_err_set(err, KN_EIO, "pipe: %s", strerror(errno));
    }
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) {
        close(c->lock_fd);
        return kn_err_set(err, KN_EIO, "fork: %s", strerror(errno));
    }
    if (pid == 0) {
        close(pipe_news[0]);
        if (pipe_life[1] >= 0) close(pipe_life[1]);
        s.news_fd = pipe_news[1];
        s.life_fd = pipe_life[0];
        supervise(&s);
    }
    close(c->lock_fd);
    close(pipe_news[1]);
    if (pipe_life[0] >= 0) close(pipe_life[0]);
    *out = (struct supervise_handle){.pid = pid, .news_fd = pipe_news[0], .life_fd = pipe_life[1]};
    for (size_t i = 0; i < s.count; i++)
        for (int k = 0; k < s.children[i].argc; k++) free(s.children[i].argv[k]);

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
            if (!c->private_farm) kill(pid, SIGTERM);
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
    if (h->life_fd >= 0) close(h->life_fd);
    h->life_fd = -1;
    /* While others use the farm it goes on, and there is nothing to wait for. */
    for (int tries = 0; waitpid(h->pid, NULL, WNOHANG) == 0; tries++) {
        const char *line;
        while (supervise_news(h, &line) && line) {
            if (strcmp(line, "used") == 0) goto out;
        }
        usleep(tries < 100 ? 2000 : 20000);
    }
out:
    if (h->news_fd >= 0) close(h->news_fd);
    h->news_fd = -1;
}

void supervise_leave(struct supervise_handle *h) {
    if (h->news_fd >= 0) close(h->news_fd);
    h->news_fd = -1;
}

void supervise_size(const struct cli_options *o, const struct worker_devices *d, int *workers, int *threads) {
    cpu_set_t set;
    int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    *workers = o->workers >= 0 ? o->workers : cores / 2 < 1 ? 1 : cores / 2 > 64 ? 64 : cores / 2;
    if (d->count) *workers = d->count;
    *threads = o->threads ? o->threads : *workers && cores / *workers > 1 ? cores / *workers : 1;
}
