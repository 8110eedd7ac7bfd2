/* Child processes that are kept running: started in process groups of their own (Ctrl-C reaches the
 * supervisor alone, which ends them in order), written down in pid files, their output in logs, started again
 * after a pause that grows while they die young, and ended with patience.
 *
 * Which processes there are, when one may start and whether one that has ended is started again is its user's
 * to say; so is every line of a log. The life of a child:
 *
 *     due ──start──▶ running ──ends──▶ pausing ──pause is over──▶ due
 *                       │
 *                       └──ends, and ended() says so──▶ over
 *
 * A child gets SIGTERM should the supervisor itself be killed, unless children stay (`stay`): then another process may
 * go on with `v`, where that lies in memory that both share. One thread, which must have no other children (all that end
 * are reaped here); it takes over the signals that it is given. Libc only. */
#ifndef KN_BASE_SUPERVISE_H
#define KN_BASE_SUPERVISE_H

#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "base/limits.h"

struct kn_child {
    char name[KN_NAME_MAX + 16]; /* also of its log and its pid file */
    const char *program;         /* borrowed; without a slash it is looked for in PATH */
    char *const *argv;           /* borrowed; ends with NULL */
    int killed_pause_max_ms;     /* the longest pause after a signal ended it; 0: as any other */

    /* The supervisor's; users read them. */
    pid_t pid;            /* 0: not running */
    uint64_t started_ms;  /* the last time */
    uint64_t start_at_ms; /* not before; 0: whenever its user lets it */
    off_t log_at;         /* where its log ended when it was started */
    int starts;
    int deaths;           /* in a row within young_ms of a start */
    int pause_ms;         /* from its last end to its next start */
    bool over;            /* not started again */
    bool died_of_memory;  /* the last time: the kernel killed it for want of memory */
    uint64_t memory_free; /* then: bytes that could be had at its end */
    uint64_t oom_kills;   /* the kernel's count when it was started */
};

/* Written to ends_fd before the process is reaped, so that whoever misses it finds it there. */
struct kn_end {
    pid_t pid;
    int status; /* waitpid()'s */
};

enum kn_child_event {
    KN_CHILD_STARTING,    /* about to be: what the last one left may be cleared away */
    KN_CHILD_STARTED,     /* pid and starts are set */
    KN_CHILD_NOT_STARTED, /* fork failed, errno says why; tried again in a second */
    KN_CHILD_NO_PID_FILE, /* it runs, but its pid file could not be written */
    KN_CHILD_KILLED,      /* SIGKILL was sent, for it did not end in time */
};

struct kn_supervisor {
    struct kn_child *v;
    size_t count;
    int pause_ms,
        pause_max_ms;    /* before the first start again, doubled for each young death, and the longest */
    int young_ms;        /* who lived for less waits longer the next time */
    const char *log_dir; /* DIR/NAME.log gets their output; NULL: it goes where the supervisor's goes */
    const char *pid_dir; /* DIR/NAME.pid is there while one runs; NULL: no such files */
    /* Any but `ended` may be NULL. `ended` is given waitpid()'s status and says whether it is started again. */
    void (*event)(void *ctx, struct kn_child *c, enum kn_child_event e);
    bool (*ended)(void *ctx, struct kn_child *c, int status);
    void *ctx;
    const char *machine; /* kn_machine_read's root; NULL: "" */
    bool stay;           /* children go on when the supervisor is killed; v is in shared memory */
    int ends_fd; /* struct kn_end of children that another process reaps (O_NONBLOCK); 0: there is none */
    /* the supervisor's own */
    int signal_fd;
    sigset_t before;
    uint64_t oom_told; /* the kernel's kills up to this one have been put down to a child */
};

/* Takes over the signals (0 behind the last) and SIGCHLD. KN_EIO. */
KN_MUST_USE int kn_supervise_begin(struct kn_supervisor *s, const int *signals);
/* Gives the signals back. Children that run go on. */
void kn_supervise_close(struct kn_supervisor *s);

/* Starts those of v[from…to) that are due. */
void kn_supervise_start(struct kn_supervisor *s, size_t from, size_t to);
/* Waits for a signal, a child's end, a pause's end or one of the `more` descriptors, timeout_ms at most; then
 * reaps. Returns the signals that came but for SIGCHLD, a bit each (KN_SIGNAL_BIT). */
uint64_t kn_supervise_wait(struct kn_supervisor *s, struct pollfd *more, size_t more_count, int timeout_ms);
#define KN_SIGNAL_BIT(number) (1ull << (number))

bool kn_supervise_running(const struct kn_supervisor *s, size_t from, size_t to); /* at least one does */

struct kn_ending {
    int patience_ms;  /* from SIGTERM to SIGKILL */
    uint64_t kill_on; /* signals that end the patience: SIGKILL at once */
    uint64_t pass_on; /* signals that are answered with one more SIGTERM for each child */
    bool now;         /* no patience to begin with; becomes true when a signal of kill_on came */
};
/* Sends SIGTERM to v[from…to) and returns when all of them have ended. */
void kn_supervise_end(struct kn_supervisor *s, size_t from, size_t to, struct kn_ending *e);

/* The pause before the next start, after `deaths` deaths in a row. */
int kn_supervise_pause_ms(int first_ms, int max_ms, int deaths);
/* The last line of a log behind `from` that is no everyday event (info, debug), for a person; "": none. */
void kn_supervise_last_words(const char *log, off_t from, char *out, size_t out_max);

#endif
