/* Processes that are kept running: shell scripts in their place, this program the supervisor. Each test waits
 * for what its children write down or for their ends, never for a time. */
#include "base/supervise.h"

#include <errno.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fs.h"
#include "tests/unit/check.h"

#define CHILDREN_MAX 3
#define LONG_MS 20000 /* a test that waits longer has failed */

static char dir[64], scripts[CHILDREN_MAX][512];
static char *words[CHILDREN_MAX][4];
static struct kn_child children[CHILDREN_MAX];
static struct kn_supervisor s;
static int ends, last_status, events[KN_CHILD_KILLED + 1];
static bool again;
static char ended_order[64];

static void on_event(void *ctx, struct kn_child *c, enum kn_child_event e) {
    (void)ctx;
    (void)c;
    events[e]++;
}

static bool on_end(void *ctx, struct kn_child *c, int status) {
    (void)ctx;
    ends++;
    last_status = status;
    strncat(ended_order, c->name, sizeof ended_order - strlen(ended_order) - 1);
    return again;
}

/* A supervisor of one child, named "a", "b" …, for each script; $D is the test's folder. */
static void begin(size_t count, const char *const *script) {
    static const int signals[] = {SIGTERM, SIGQUIT, 0};
    strcpy(dir, "/tmp/kn-supervise-XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
    memset(children, 0, sizeof children);
    memset(events, 0, sizeof events);
    ends = 0;
    again = true;
    ended_order[0] = '\0';
    for (size_t i = 0; i < count; i++) {
        snprintf(scripts[i], sizeof scripts[i], "D=%s; %s", dir, script[i]);
        words[i][0] = (char *)"sh";
        words[i][1] = (char *)"-c";
        words[i][2] = scripts[i];
        words[i][3] = NULL;
        snprintf(children[i].name, sizeof children[i].name, "%c", (char)('a' + i));
        children[i].program = "sh";
        children[i].argv = words[i];
    }
    s = (struct kn_supervisor){.v = children,
                               .count = count,
                               .pause_ms = 1,
                               .pause_max_ms = 4,
                               .young_ms = LONG_MS,
                               .log_dir = dir,
                               .pid_dir = dir,
                               .event = on_event,
                               .ended = on_end};
    CHECK_INT(kn_supervise_begin(&s, signals), 0);
}

static void finish(void) {
    struct kn_ending now = {.now = true};
    again = false;
    kn_supervise_end(&s, 0, s.count, &now);
    kn_supervise_close(&s);
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", dir);
    CHECK_INT(system(command), 0);
}

static const char *path(const char *name) {
    static char out[128];
    snprintf(out, sizeof out, "%s/%s", dir, name);
    return out;
}

/* Supervises until the file is there. */
static void await_file(const char *name) {
    uint64_t end = kn_clock_ms() + LONG_MS;
    while (!kn_fs_exists(path(name)) && kn_clock_ms() < end) {
        kn_supervise_start(&s, 0, s.count);
        kn_supervise_wait(&s, NULL, 0, 5);
    }
    CHECK_MSG(kn_fs_exists(path(name)), "%s", name);
}

static void await_ends(int n) {
    uint64_t end = kn_clock_ms() + LONG_MS;
    while (ends < n && kn_clock_ms() < end) {
        kn_supervise_start(&s, 0, s.count);
        kn_supervise_wait(&s, NULL, 0, 1000);
    }
    CHECK(ends >= n);
}

#define BEGIN(...)                                                                                           \
    begin(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *), (const char *const[]){__VA_ARGS__})
#define STAYS "trap 'exit 0' TERM; touch $D/there; while :; do sleep 0.01; done"
#define STUBBORN "trap '' TERM; touch $D/there; while :; do sleep 0.01; done"

TEST(a_child_runs_in_a_group_of_its_own_with_a_pid_file_and_a_log) {
    struct kn_buf b;
    kn_buf_init(&b, 4096);
    BEGIN("echo said; echo wrong >&2; " STAYS);
    await_file("there");
    pid_t pid = children[0].pid;
    CHECK(pid > 0 && getpgid(pid) == pid && getpgid(pid) != getpgrp());
    CHECK_INT(kn_fs_read(path("a.pid"), &b, NULL), 0);
    CHECK_INT(atoi(b.data), pid);
    kn_buf_clear(&b);
    CHECK_INT(kn_fs_read(path("a.log"), &b, NULL), 0);
    CHECK_STR(b.data, "said\nwrong\n");
    CHECK_INT(events[KN_CHILD_STARTING], 1);
    CHECK_INT(events[KN_CHILD_STARTED], 1);
    finish();
    kn_buf_fini(&b);
    CHECK(kill(pid, 0) != 0 && errno == ESRCH);
}

TEST(the_pid_file_goes_when_the_child_does) {
    BEGIN("exit 0");
    again = false;
    await_ends(1);
    CHECK(children[0].over && !kn_fs_exists(path("a.pid")));
    kn_supervise_start(&s, 0, 1);
    CHECK_INT(children[0].pid, 0); /* over is over */
    finish();
}

TEST(one_that_dies_young_is_started_again_after_a_pause_that_grows) {
    BEGIN("exit 3");
    static const int want[] = {1, 2, 4, 4};
    for (int i = 0; i < 4; i++) {
        await_ends(i + 1);
        CHECK_INT(children[0].deaths, i + 1);
        CHECK_INT(children[0].pause_ms, want[i]);
        CHECK_INT(WEXITSTATUS(last_status), 3);
    }
    CHECK_INT(children[0].starts, 4);
    finish();
}

TEST(the_pause_doubles_up_to_its_bound) {
    static const int want[] = {200, 200, 400, 800, 1600, 3200, 5000, 5000};
    for (int i = 0; i < 8; i++) CHECK_INT(kn_supervise_pause_ms(200, 5000, i), want[i]);
    CHECK_INT(kn_supervise_pause_ms(200, 5000, 1000000), 5000);
}

TEST(one_that_was_killed_has_a_pause_of_its_own) {
    BEGIN("kill -9 $$");
    s.pause_ms = s.pause_max_ms = 5;
    children[0].killed_pause_max_ms = 2;
    await_ends(1);
    CHECK(WIFSIGNALED(last_status));
    CHECK_INT(children[0].pause_ms, 2);
    finish();
}

TEST(one_that_cannot_be_executed_ends_with_127_and_says_why) {
    BEGIN("");
    char text[128];
    children[0].program = "/nowhere/program";
    again = false;
    await_ends(1);
    CHECK_INT(WEXITSTATUS(last_status), 127);
    kn_supervise_last_words(path("a.log"), 0, text, sizeof text);
    CHECK_STR(text, "/nowhere/program: No such file or directory");
    finish();
}

TEST(children_end_in_the_order_in_which_they_are_told_to) {
    BEGIN(STAYS, "trap 'exit 0' TERM; touch $D/two; while :; do sleep 0.01; done");
    struct kn_ending patient = {.patience_ms = LONG_MS};
    await_file("there");
    await_file("two");
    again = false;
    kn_supervise_end(&s, 1, 2, &patient);
    CHECK(children[0].pid > 0 && children[1].pid == 0);
    kn_supervise_end(&s, 0, 1, &patient);
    CHECK_STR(ended_order, "ba");
    CHECK(WIFEXITED(last_status));
    CHECK_INT(events[KN_CHILD_KILLED], 0);
    finish();
}

TEST(one_that_does_not_end_in_time_is_killed) {
    BEGIN(STUBBORN);
    struct kn_ending short_of_time = {.patience_ms = 1};
    await_file("there");
    kn_supervise_end(&s, 0, 1, &short_of_time);
    CHECK(WIFSIGNALED(last_status) && WTERMSIG(last_status) == SIGKILL);
    CHECK_INT(events[KN_CHILD_KILLED], 1);
    finish();
}

TEST(a_signal_can_end_the_patience) {
    BEGIN(STUBBORN);
    struct kn_ending patient = {.patience_ms = LONG_MS, .kill_on = KN_SIGNAL_BIT(SIGQUIT)};
    await_file("there");
    kill(getpid(), SIGQUIT); /* blocked: it waits until it is read */
    kn_supervise_end(&s, 0, 1, &patient);
    CHECK(patient.now && WIFSIGNALED(last_status) && WTERMSIG(last_status) == SIGKILL);
    finish();
}

TEST(a_signal_can_be_passed_on_once_more) {
    BEGIN("n=0; trap 'n=$((n+1)); [ $n = 2 ] && exit 7' TERM; touch $D/there; while :; do sleep 0.01; done");
    struct kn_ending patient = {.patience_ms = LONG_MS, .pass_on = KN_SIGNAL_BIT(SIGTERM)};
    await_file("there");
    /* One waits already when the end begins; the child gets its first SIGTERM before that is read. Whether
     * the shell sees one or two depends on its speed, so more come until it has ended. */
    pid_t helper = fork();
    if (helper == 0) {
        for (int i = 0; i < LONG_MS / 20; i++) {
            kill(getppid(), SIGTERM);
            usleep(20000);
        }
        _exit(0);
    }
    kn_supervise_end(&s, 0, 1, &patient);
    kill(helper, SIGKILL);
    waitpid(helper, NULL, 0);
    CHECK_INT(WEXITSTATUS(last_status), 7);
    finish();
}

TEST(what_waits_for_its_pause_is_over_when_the_end_begins) {
    BEGIN("exit 3");
    struct kn_ending patient = {.patience_ms = LONG_MS};
    s.pause_ms = s.pause_max_ms = LONG_MS;
    await_ends(1);
    kn_supervise_end(&s, 0, 1, &patient);
    CHECK(children[0].over);
    finish();
}

TEST(other_descriptors_and_signals_wake_the_wait) {
    BEGIN(STAYS);
    int fds[2];
    CHECK_INT(pipe(fds), 0);
    struct pollfd more = {.fd = fds[0], .events = POLLIN};
    CHECK_INT(write(fds[1], "x", 1), 1);
    CHECK_U64(kn_supervise_wait(&s, &more, 1, LONG_MS), 0);
    CHECK(more.revents & POLLIN);
    kill(getpid(), SIGTERM);
    CHECK_U64(kn_supervise_wait(&s, NULL, 0, LONG_MS), KN_SIGNAL_BIT(SIGTERM));
    close(fds[0]);
    close(fds[1]);
    finish();
}

TEST(last_words_pass_over_everyday_events_and_what_was_there_before) {
    char text[256];
    static const char log[] =
        "2026 error old\n"
        "2026 warn process_ended\n"
        "2026 info started\n\n"
        "2026 debug x\n";
    BEGIN("");
    CHECK_INT(kn_fs_replace(path("l.log"), log, sizeof log - 1, false, NULL), 0);
    kn_supervise_last_words(path("l.log"), 0, text, sizeof text);
    CHECK_STR(text, "2026 warn process_ended");
    kn_supervise_last_words(path("l.log"), 40, text, sizeof text);
    CHECK_STR(text, "");
    kn_supervise_last_words(path("none.log"), 0, text, sizeof text);
    CHECK_STR(text, "");
    finish();
}

TEST(children_get_sigterm_when_their_supervisor_is_killed) {
    BEGIN("trap 'touch $D/told; exit 0' TERM; touch $D/there; while :; do sleep 0.01; done");
    pid_t supervisor = fork();
    if (supervisor == 0) {
        for (;;) {
            kn_supervise_start(&s, 0, 1);
            kn_supervise_wait(&s, NULL, 0, 1000);
        }
    }
    uint64_t end = kn_clock_ms() + LONG_MS;
    while (!kn_fs_exists(path("there")) && kn_clock_ms() < end) usleep(5000);
    CHECK_INT(kill(supervisor, SIGKILL), 0);
    CHECK_INT(waitpid(supervisor, NULL, 0), supervisor);
    while (!kn_fs_exists(path("told")) && kn_clock_ms() < end) usleep(5000);
    CHECK(kn_fs_exists(path("told")));
    finish();
}

/* ---- memory */

/* The machine is the test's folder: in its /proc/vmstat stands the kernel's count of processes that it killed for
 * want of memory. */

TEST(a_child_that_the_kernel_killed_for_want_of_memory_is_known_as_that) {
    /* The kernel counts, then kills. */
    begin(1, (const char *[]){"mkdir -p $D/proc; echo oom_kill 1 > $D/proc/vmstat; kill -9 $$"});
    s.machine = dir;
    await_ends(1);
    CHECK(children[0].died_of_memory);
    /* The next one is killed by a person: the count stays. */
    await_ends(2);
    CHECK(!children[0].died_of_memory);
    finish();
}

TEST(each_kill_for_memory_is_put_down_to_one_child) {
    begin(2, (const char *[]){"mkdir -p $D/proc; echo oom_kill 1 > $D/proc/vmstat; kill -9 $$",
                              "until [ -e $D/a.over ]; do sleep 0.01; done; kill -9 $$"});
    s.machine = dir;
    again = false;
    await_ends(1);
    CHECK(children[0].died_of_memory);
    char path[128];
    snprintf(path, sizeof path, "%s/a.over", dir);
    CHECK_INT(kn_fs_replace(path, "", 0, false, NULL), 0);
    await_ends(2);
    CHECK(!children[1].died_of_memory);
    finish();
}

TEST(who_ends_by_itself_while_the_kernel_kills_another_did_not_die_of_memory) {
    begin(1, (const char *[]){"mkdir -p $D/proc; echo oom_kill 7 > $D/proc/vmstat; exit 3"});
    s.machine = dir;
    again = false;
    await_ends(1);
    CHECK(!children[0].died_of_memory);
    finish();
}
