/* See supervise.h. */
#include "worker/supervise.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

struct child {
    const char *uuid;
    char name[KN_NAME_MAX + 16];
    char **argv; /* owned; the words are borrowed */
    pid_t pid;   /* 0: not running */
    uint64_t started_ms, start_at_ms;
    int starts, deaths; /* deaths: in a row, young */
    bool over;          /* will not be started again */
    bool refused;       /* and that because it could not be started */
};

struct supervisor {
    struct supervise_options opt;
    struct child v[DEVICES_MAX];
    sigset_t before, mine;
    int signals;
    uint64_t kill_at_ms; /* 0: nobody asked for the end */
};

/* In the child: from here to exec, nothing but plain system calls. */
static _Noreturn void become(const struct supervisor *s, const struct child *c, pid_t parent) {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1);
    sigprocmask(SIG_SETMASK, &s->before, NULL);
    execv(s->opt.program, c->argv);
    dprintf(2, "kiln-worker: %s: %s\n", s->opt.program, strerror(errno));
    _exit(127);
}

static void start(struct supervisor *s, struct child *c) {
    fflush(NULL);
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) become(s, c, parent);
    c->started_ms = kn_clock_ms();
    if (pid < 0) {
        kn_error("fork_failed worker=%s error=%s", c->name, strerror(errno));
        c->start_at_ms = c->started_ms + 1000;
        return;
    }
    c->pid = pid;
    c->starts++;
    kn_info("worker_started worker=%s device=%s pid=%d starts=%d", c->name, c->uuid, (int)pid, c->starts);
}

static int pause_ms(const struct supervise_options *o, int deaths) {
    int ms = o->pause_ms;
    for (int i = 1; i < deaths && ms < o->pause_max_ms; i++) ms *= 2;
    return ms < o->pause_max_ms ? ms : o->pause_max_ms;
}

static void ended(struct supervisor *s, struct child *c, int status) {
    uint64_t now = kn_clock_ms();
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    c->pid = 0;
    c->deaths = now - c->started_ms < (uint64_t)s->opt.young_ms ? c->deaths + 1 : 1;
    c->refused = (code == 1 || code == 127) && c->starts == 1;
    c->over = code == 0 || c->refused || s->kill_at_ms;
    int pause = c->over ? 0 : pause_ms(&s->opt, c->deaths);
    c->start_at_ms = now + (uint64_t)pause;
    kn_log(code == 0 ? KN_LOG_INFO : KN_LOG_WARN,
           "worker_ended worker=%s device=%s %s=%d deaths=%d again=%d pause_ms=%d", c->name, c->uuid,
           code < 0 ? "signal" : "status", code < 0 ? WTERMSIG(status) : code, c->deaths, !c->over, pause);
}

static void reap(struct supervisor *s) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        for (int i = 0; i < s->opt.count; i++)
            if (s->v[i].pid == pid) ended(s, &s->v[i], status);
}

static void pass_on(struct supervisor *s, int sig) {
    for (int i = 0; i < s->opt.count; i++)
        if (s->v[i].pid) kill(s->v[i].pid, sig);
}

/* Somebody asks for the end; the second time the workers leave at once, as one alone does. */
static void on_signal(struct supervisor *s) {
    if (s->signals++ == 0) {
        kn_info("ending workers=%d", s->opt.count);
        s->kill_at_ms = kn_clock_ms() + (uint64_t)s->opt.patience_ms;
        for (int i = 0; i < s->opt.count; i++)
            if (!s->v[i].pid) s->v[i].over = true;
    }
    pass_on(s, SIGTERM);
}

/* Starts what is due; how long until there is something to do, -1: nobody is left. */
static int advance(struct supervisor *s) {
    uint64_t now = kn_clock_ms();
    int wait = -1;
    if (s->kill_at_ms && now >= s->kill_at_ms) {
        kn_warn("killing reason=\"they do not end\"");
        pass_on(s, SIGKILL);
        s->kill_at_ms = now + 1000;
    }
    for (int i = 0; i < s->opt.count; i++) {
        struct child *c = &s->v[i];
        if (!c->pid && !c->over && now >= c->start_at_ms) start(s, c);
        if (c->over) continue;
        int due = 1000;
        if (!c->pid && c->start_at_ms > now && c->start_at_ms - now < 1000) due = (int)(c->start_at_ms - now);
        if (wait < 0 || due < wait) wait = due;
    }
    return wait;
}

static bool prepare(struct supervisor *s) {
    int words = 0;
    while (s->opt.words[words] && strcmp(s->opt.words[words], "--") != 0) words++;
    for (int i = 0; i < s->opt.count; i++) {
        struct child *c = &s->v[i];
        c->uuid = s->opt.uuids[i];
        snprintf(c->name, sizeof c->name, "%.*s-gpu%d", KN_NAME_MAX - 6, s->opt.name, i);
        c->argv = calloc((size_t)words + 5, sizeof *c->argv);
        if (!c->argv) return false;
        memcpy(c->argv, s->opt.words, (size_t)words * sizeof *c->argv);
        const char *const more[] = {"--device", c->uuid, "--name", c->name}; /* the last one counts */
        for (size_t k = 0; k < 4; k++) c->argv[(size_t)words + k] = (char *)(uintptr_t)more[k];
    }
    return true;
}

int supervise_run(const struct supervise_options *opt) {
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP, SIGCHLD};
    static struct supervisor s; /* large; one a process */
    int wait, status = 0;
    assert(opt->count > 0 && opt->count <= DEVICES_MAX);
    memset(&s, 0, sizeof s);
    s.opt = *opt;
    if (!s.opt.pause_ms) s.opt.pause_ms = 500;
    if (!s.opt.pause_max_ms) s.opt.pause_max_ms = 30000;
    if (!s.opt.young_ms) s.opt.young_ms = 60000;
    if (!s.opt.patience_ms) s.opt.patience_ms = 25000;
    if (!prepare(&s)) return 1;
    sigemptyset(&s.mine);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) sigaddset(&s.mine, numbers[i]);
    sigprocmask(SIG_BLOCK, &s.mine, &s.before);
    while ((wait = advance(&s)) >= 0) {
        struct timespec t = {.tv_sec = wait / 1000, .tv_nsec = wait % 1000 * 1000000L};
        int sig = sigtimedwait(&s.mine, NULL, &t);
        reap(&s);
        if (sig > 0 && sig != SIGCHLD) on_signal(&s);
    }
    sigprocmask(SIG_SETMASK, &s.before, NULL);
    for (int i = 0; i < s.opt.count; i++) {
        if (s.v[i].refused) status = 1;
        free(s.v[i].argv);
    }
    return status;
}
