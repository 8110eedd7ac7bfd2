/* See supervise.h. Signals are read from a signalfd, so that one poll() waits for all there is. */
#include "base/supervise.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/machine.h"

#define FORK_AGAIN_MS 1000
#define MORE_MAX 4 /* descriptors beside the signals */
#define END_POLL_MS 100
#define GONE_MAX 64 /* found at once; the others at the next look */
#define LAST_WORDS_BYTES 4096

int kn_supervise_begin(struct kn_supervisor *s, const int *signals) {
    sigset_t mine;
    sigemptyset(&mine);
    sigaddset(&mine, SIGCHLD);
    for (; *signals; signals++) sigaddset(&mine, *signals);
    if (sigprocmask(SIG_BLOCK, &mine, &s->before)) return KN_EIO;
    s->signal_fd = signalfd(-1, &mine, SFD_NONBLOCK | SFD_CLOEXEC);
    if (s->signal_fd >= 0) return KN_OK;
    sigprocmask(SIG_SETMASK, &s->before, NULL);
    return KN_EIO;
}

void kn_supervise_close(struct kn_supervisor *s) {
    close(s->signal_fd);
    s->signal_fd = -1;
    sigprocmask(SIG_SETMASK, &s->before, NULL);
}

static void tell(struct kn_supervisor *s, struct kn_child *c, enum kn_child_event e) {
    if (s->event) s->event(s->ctx, c, e);
}

/* ---- starting ---- */

static int file_of(const char *dir, const struct kn_child *c, const char *ending, char out[KN_PATH_MAX]) {
    return snprintf(out, KN_PATH_MAX, "%s/%s.%s", dir, c->name, ending) < KN_PATH_MAX ? KN_OK : KN_ELIMIT;
}

/* In the child: from here to exec, nothing but plain system calls. */
static _Noreturn void become(struct kn_child *c, bool stay, const char *log, pid_t parent) {
    setpgid(0, 0);
    c->pid = getpid(); /* who goes on with shared memory knows of it, wherever its supervisor was killed */
    if (!stay) prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(127); /* it died before the lines above */
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    if (log) {
        int in = open("/dev/null", O_RDONLY), out = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (in < 0 || out < 0) _exit(126);
        dup2(in, 0);
        dup2(out, 1);
        dup2(out, 2);
        if (in > 2) close(in);
        if (out > 2) close(out);
    }
    execvp(c->program, c->argv);
    dprintf(2, "%s: %s\n", c->program, strerror(errno));
    _exit(127);
}

static int write_pid(const char *path, pid_t pid) {
    char text[32];
    int n = snprintf(text, sizeof text, "%d\n", (int)pid);
    return kn_fs_replace(path, text, (size_t)n, false, NULL);
}

static void start(struct kn_supervisor *s, struct kn_child *c) {
    struct kn_machine m;
    char log[KN_PATH_MAX], pid_file[KN_PATH_MAX];
    struct stat st;
    bool has_log = s->log_dir && file_of(s->log_dir, c, "log", log) == KN_OK;
    tell(s, c, KN_CHILD_STARTING);
    c->log_at = has_log && stat(log, &st) == 0 ? st.st_size : 0;
    kn_machine_read(s->machine ? s->machine : "", &m);
    c->oom_kills = m.oom_kills;
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) become(c, s->stay, has_log ? log : NULL, parent);
    c->started_ms = kn_clock_ms();
    if (pid < 0) {
        c->start_at_ms = c->started_ms + FORK_AGAIN_MS;
        tell(s, c, KN_CHILD_NOT_STARTED);
        return;
    }
    c->pid = pid;
    c->start_at_ms = 0;
    c->starts++;
    if (s->pid_dir && (file_of(s->pid_dir, c, "pid", pid_file) || write_pid(pid_file, pid)))
        tell(s, c, KN_CHILD_NO_PID_FILE);
    tell(s, c, KN_CHILD_STARTED);
}

void kn_supervise_start(struct kn_supervisor *s, size_t from, size_t to) {
    uint64_t now = kn_clock_ms();
    for (size_t i = from; i < to; i++) {
        struct kn_child *c = &s->v[i];
        if (!c->pid && !c->over && now >= c->start_at_ms) start(s, c);
    }
}

/* ---- ends ---- */

int kn_supervise_pause_ms(int first_ms, int max_ms, int deaths) {
    int ms = first_ms;
    for (int i = 1; i < deaths && ms < max_ms; i++) ms *= 2;
    return ms < max_ms ? ms : max_ms;
}

/* The kernel kills with SIGKILL, and counts. A kill that was counted since the child was started, and that no other
 * child was put down to, was this one's. */
static void see_memory(struct kn_supervisor *s, struct kn_child *c, int status) {
    struct kn_machine m;
    kn_machine_read(s->machine ? s->machine : "", &m);
    uint64_t before = c->oom_kills > s->oom_told ? c->oom_kills : s->oom_told;
    c->died_of_memory = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && m.oom_kills > before;
    c->memory_free = m.memory_free;
    if (c->died_of_memory) s->oom_told = before + 1;
}

static void on_end(struct kn_supervisor *s, struct kn_child *c, int status) {
    char pid_file[KN_PATH_MAX];
    uint64_t now = kn_clock_ms();
    see_memory(s, c, status);
    if (s->pid_dir && file_of(s->pid_dir, c, "pid", pid_file) == KN_OK) unlink(pid_file);
    c->deaths = now - c->started_ms < (uint64_t)s->young_ms ? c->deaths + 1 : 1;
    c->pause_ms = kn_supervise_pause_ms(s->pause_ms, s->pause_max_ms, c->deaths);
    if (WIFSIGNALED(status) && c->killed_pause_max_ms && c->pause_ms > c->killed_pause_max_ms)
        c->pause_ms = c->killed_pause_max_ms;
    c->start_at_ms = now + (uint64_t)c->pause_ms;
    c->over = !s->ended(s->ctx, c, status);
    c->pid = 0;
}

static void has_ended(struct kn_supervisor *s, pid_t pid, int status) {
    for (size_t i = 0; i < s->count; i++)
        if (s->v[i].pid == pid) on_end(s, &s->v[i], status);
}

/* Of children that another process reaps. One that is gone without a word counts as killed: the word is written before
 * it is gone, so this looks for it afterwards. */
static void reap_by_word(struct kn_supervisor *s) {
    struct kn_end e;
    pid_t gone[GONE_MAX];
    size_t n = 0;
    for (size_t i = 0; i < s->count && n < GONE_MAX; i++)
        if (s->v[i].pid && kill(s->v[i].pid, 0) && errno == ESRCH) gone[n++] = s->v[i].pid;
    while (read(s->ends_fd, &e, sizeof e) == (ssize_t)sizeof e) has_ended(s, e.pid, e.status);
    while (n > 0) has_ended(s, gone[--n], SIGKILL);
}

static void reap(struct kn_supervisor *s) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) has_ended(s, pid, status);
    if (s->ends_fd) reap_by_word(s);
}

static uint64_t wait_and_reap(struct kn_supervisor *s, struct pollfd *more, size_t more_count,
                              int timeout_ms) {
    struct pollfd p[2 + MORE_MAX] = {{.fd = s->signal_fd, .events = POLLIN}};
    struct signalfd_siginfo si;
    uint64_t signals = 0;
    assert(more_count <= MORE_MAX);
    for (size_t i = 0; i < more_count; i++) p[1 + i] = more[i];
    p[1 + more_count] = (struct pollfd){.fd = s->ends_fd ? s->ends_fd : -1, .events = POLLIN};
    int n = poll(p, 2 + (nfds_t)more_count, timeout_ms);
    for (size_t i = 0; i < more_count; i++) more[i].revents = n > 0 ? p[1 + i].revents : (short)0;
    while (read(s->signal_fd, &si, sizeof si) == (ssize_t)sizeof si)
        if (si.ssi_signo != SIGCHLD) signals |= KN_SIGNAL_BIT(si.ssi_signo);
    reap(s);
    return signals;
}

uint64_t kn_supervise_wait(struct kn_supervisor *s, struct pollfd *more, size_t more_count, int timeout_ms) {
    uint64_t now = kn_clock_ms();
    for (size_t i = 0; i < s->count; i++) {
        const struct kn_child *c = &s->v[i];
        if (c->pid || c->over || c->start_at_ms == 0) continue;
        int due = c->start_at_ms > now ? (int)(c->start_at_ms - now) : 1; /* 1: its user holds it back */
        if (due < timeout_ms) timeout_ms = due;
    }
    return wait_and_reap(s, more, more_count, timeout_ms);
}

bool kn_supervise_running(const struct kn_supervisor *s, size_t from, size_t to) {
    for (size_t i = from; i < to; i++)
        if (s->v[i].pid) return true;
    return false;
}

static void send_all(struct kn_supervisor *s, size_t from, size_t to, int number) {
    for (size_t i = from; i < to; i++)
        if (s->v[i].pid) kill(s->v[i].pid, number);
}

void kn_supervise_end(struct kn_supervisor *s, size_t from, size_t to, struct kn_ending *e) {
    uint64_t end = kn_clock_ms() + (uint64_t)e->patience_ms;
    bool killed = e->now;
    send_all(s, from, to, e->now ? SIGKILL : SIGTERM);
    for (size_t i = from; i < to; i++)
        if (!s->v[i].pid) s->v[i].over = true; /* what pauses is not waited for */
    while (kn_supervise_running(s, from, to)) {
        uint64_t signals = wait_and_reap(s, NULL, 0, END_POLL_MS);
        if (signals & e->kill_on) e->now = true;
        if (signals & e->pass_on) send_all(s, from, to, SIGTERM);
        if (killed || (!e->now && kn_clock_ms() <= end)) continue;
        for (size_t i = from; i < to; i++)
            if (s->v[i].pid) tell(s, &s->v[i], KN_CHILD_KILLED);
        send_all(s, from, to, SIGKILL);
        killed = true;
    }
}

/* ---- logs ---- */

void kn_supervise_last_words(const char *log, off_t from, char *out, size_t out_max) {
    char tail[LAST_WORDS_BYTES + 1];
    out[0] = '\0';
    int fd;
    if (kn_fs_open(log, KN_FILE_BYTES_MAX, &fd, NULL, NULL)) return;
    off_t size = lseek(fd, 0, SEEK_END);
    if (size - from > LAST_WORDS_BYTES) from = size - LAST_WORDS_BYTES;
    ssize_t n = pread(fd, tail, LAST_WORDS_BYTES, from);
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
