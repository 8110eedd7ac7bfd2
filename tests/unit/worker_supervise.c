/* A worker a GPU: shell scripts in the workers' place. Each writes a line with its UUID, name and process
 * into a file. */
#include "tests/unit/check.h"

#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "worker/supervise.h"

static char dir[64], file[128], text[65536];
static const char *const uuids[] = {"GPU-a", "GPU-b", "GPU-c"};

/* script: $2 is the UUID, $4 the name, $F the file. */
static pid_t supervised(const char *script, int count) {
    char whole[1024];
    strcpy(dir, "/tmp/kn-supervise-XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
    snprintf(file, sizeof file, "%s/lines", dir);
    snprintf(whole, sizeof whole, "F=%s; echo \"$2 $4 $$\" >> $F; %s", file, script);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        char *words[] = {(char *)"sh", (char *)"-c", whole, (char *)"sh", (char *)"--", (char *)"more", NULL};
        kn_log_init("test", KN_LOG_ERROR);
        struct supervise_options o = {.program = "/bin/sh",
                                      .words = words,
                                      .name = "host",
                                      .uuids = uuids,
                                      .count = count,
                                      .pause_ms = 20,
                                      .pause_max_ms = 200,
                                      .patience_ms = 1500};
        _exit(supervise_run(&o));
    }
    CHECK(pid > 0);
    return pid;
}

static int lines(void) {
    FILE *f = fopen(file, "re");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    int count = 0;
    if (f) fclose(f);
    text[n] = '\0';
    for (const char *p = text; (p = strchr(p, '\n')) != NULL; p++) count++;
    return count;
}

static void await_lines(int n) {
    uint64_t end = kn_clock_ms() + 20000;
    while (lines() < n && kn_clock_ms() < end) usleep(5000);
    CHECK_MSG(lines() >= n, "%s", text);
}

static int end_of(pid_t pid) {
    int status = 0;
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status));
    unlink(file);
    rmdir(dir);
    return WEXITSTATUS(status);
}

TEST(each_gpu_gets_a_worker_of_its_own_name_and_a_signal_ends_all) {
    pid_t pid = supervised("trap 'exit 0' TERM; while :; do sleep 0.05; done", 3);
    await_lines(3);
    CHECK(strstr(text, "GPU-a host-gpu0 ") && strstr(text, "GPU-b host-gpu1 ") &&
          strstr(text, "GPU-c host-gpu2 "));
    kill(pid, SIGINT);
    CHECK_INT(end_of(pid), 0);
}

TEST(a_worker_that_is_killed_is_started_again_and_the_others_stay) {
    int victim = 0, other = 0;
    pid_t pid = supervised("trap 'exit 0' TERM; while :; do sleep 0.05; done", 2);
    await_lines(2);
    CHECK_INT(sscanf(strstr(text, "GPU-a"), "GPU-a host-gpu0 %d", &victim), 1);
    CHECK_INT(sscanf(strstr(text, "GPU-b"), "GPU-b host-gpu1 %d", &other), 1);
    CHECK_INT(kill(victim, SIGKILL), 0);
    await_lines(3);
    CHECK_INT(lines(), 3);
    CHECK_INT(kill(other, 0), 0);
    const char *last = strstr(strchr(strchr(text, '\n') + 1, '\n'), "GPU-a host-gpu0 ");
    CHECK_MSG(last && atoi(last + 16) != victim, "%s", text);
    kill(pid, SIGTERM);
    CHECK_INT(end_of(pid), 0);
    CHECK(kill(other, 0) != 0 && errno == ESRCH);
}

TEST(one_that_ends_young_again_and_again_waits_longer_each_time) {
    uint64_t begun = kn_clock_ms();
    pid_t pid = supervised("exit 3", 1);
    await_lines(5); /* 20 + 40 + 80 + 160 ms apart at the least */
    CHECK_MSG(kn_clock_ms() - begun >= 300, "%d ms", (int)(kn_clock_ms() - begun));
    kill(pid, SIGTERM);
    CHECK_INT(end_of(pid), 0);
}

TEST(one_that_drained_is_over_and_when_all_are_so_is_the_supervisor) {
    pid_t pid = supervised("exit 0", 2);
    await_lines(2);
    CHECK_INT(end_of(pid), 0);
}

TEST(one_that_cannot_be_started_at_all_is_not_tried_again) {
    pid_t pid = supervised("exit 1", 2);
    uint64_t begun = kn_clock_ms();
    await_lines(2);
    usleep(200000);
    CHECK_INT(lines(), 2);
    CHECK_INT(end_of(pid), 1);
    CHECK(kn_clock_ms() - begun < 15000);
    /* but one that could be is */
    pid = supervised("[ $(grep -c . $F) -gt 3 ] && exit 0; [ $(grep -c . $F) -gt 1 ] && exit 1; exit 3", 1);
    await_lines(4);
    CHECK_INT(end_of(pid), 0);
}

TEST(one_that_does_not_end_is_killed_in_the_end) {
    pid_t pid = supervised("trap '' TERM; while :; do sleep 0.05; done", 1);
    await_lines(1);
    uint64_t begun = kn_clock_ms();
    kill(pid, SIGTERM);
    CHECK_INT(end_of(pid), 0);
    CHECK(kn_clock_ms() - begun >= 1400);
}
