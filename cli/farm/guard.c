/* See guard.h. */
#include "cli/farm/guard.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/supervise.h"

#define PAUSE_MS 200 /* before a supervisor that died young is followed by another; doubled, up to */
#define PAUSE_MAX_MS 5000
#define YOUNG_MS 4000

int guard_init(struct guard *g) {
    return pipe2(g->ends, O_CLOEXEC | O_NONBLOCK) ? KN_EIO : KN_OK;
}

/* Waits for the supervisor's end and returns its status. Whatever else ends is written down before it is reaped. */
static int keep(const struct guard *g, pid_t supervisor, const sigset_t *mine) {
    for (;;) {
        siginfo_t info = {0};
        while (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid > 0) {
            /* si_status is the exit code or the signal: in waitpid()'s form the one is shifted. */
            struct kn_end e = {info.si_pid,
                               info.si_code == CLD_EXITED ? info.si_status << 8 : info.si_status};
            if (e.pid != supervisor && write(g->ends[1], &e, sizeof e) < 0) {
                /* full: the supervisor sees that it is gone */
            }
            waitpid(info.si_pid, NULL, 0);
            if (e.pid == supervisor) return e.status;
            info.si_pid = 0;
        }
        int number = sigwaitinfo(mine, NULL);
        if (number > 0 && number != SIGCHLD) kill(supervisor, number);
    }
}

bool guard_split(struct guard *g, bool again) {
    sigset_t mine, gone;
    sigemptyset(&mine);
    sigemptyset(&gone);
    sigaddset(&gone, GUARD_GONE);
    static const int signals[] = {SIGCHLD, SIGTERM, SIGINT, SIGHUP, SIGQUIT};
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) sigaddset(&mine, signals[i]);
    sigprocmask(SIG_BLOCK, &mine, NULL);
    sigprocmask(SIG_BLOCK, &gone, NULL); /* it waits until the supervisor listens */
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_NAME, "kiln-guard");
    for (int deaths = 0;;) {
        uint64_t started = kn_clock_ms();
        pid_t me = getpid(), pid = fork();
        if (pid == 0) {
            prctl(PR_SET_NAME, "kiln-supervisor"); /* for ps: it is not the command that started it */
            prctl(PR_SET_PDEATHSIG, GUARD_GONE);
            if (getppid() == me) return again;
            return guard_split(g, again); /* the guard is gone already */
        }
        int status = pid > 0 ? keep(g, pid, &mine) : SIGKILL;
        if (WIFEXITED(status)) _exit(0);
        deaths = kn_clock_ms() - started < YOUNG_MS ? deaths + 1 : 1;
        kn_warn("supervisor_ended pid=%d signal=%d deaths=%d", (int)pid, WTERMSIG(status), deaths);
        if (deaths > 1 || pid < 0)
            usleep((useconds_t)kn_supervise_pause_ms(PAUSE_MS, PAUSE_MAX_MS, deaths) * 1000);
        again = true;
    }
}
