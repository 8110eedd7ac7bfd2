/* kiln-worker as a person or a supervisor meets it: flags, messages, exit statuses, signals. No farm is
 * there. */
#include "tests/unit/check.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

static char out[16384], err[16384];

static pid_t start(char *const argv[], int fds[2]) {
    int to_out[2], to_err[2];
    CHECK(pipe2(to_out, O_CLOEXEC) == 0 && pipe2(to_err, O_CLOEXEC) == 0);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(to_out[1], 1);
        dup2(to_err[1], 2);
        execv(KILN_WORKER, argv);
        _exit(127);
    }
    CHECK(pid > 0);
    close(to_out[1]);
    close(to_err[1]);
    fds[0] = to_out[0];
    fds[1] = to_err[0];
    return pid;
}

static void read_all(int fd, char *text, size_t max) {
    size_t n = 0;
    ssize_t got;
    while (n < max - 1 && ((got = read(fd, text + n, max - 1 - n)) > 0 || (got < 0 && errno == EINTR)))
        n += got > 0 ? (size_t)got : 0;
    text[n] = '\0';
    close(fd);
}

static int end_of(pid_t pid, const int fds[2]) {
    int status = 0;
    read_all(fds[0], out, sizeof out);
    read_all(fds[1], err, sizeof err);
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK_MSG(WIFEXITED(status), "signal %d: %s", WTERMSIG(status), err);
    return WEXITSTATUS(status);
}

/* Runs it with up to six words; out and err get what it says. */
static int run(const char *a, const char *b, const char *c, const char *d) {
    const char *const words[] = {KILN_WORKER, a, b, c, d, NULL};
    int fds[2];
    return end_of(start((char *const *)(uintptr_t)words, fds), fds);
}

TEST(help_shows_every_option_and_examples) {
    static const char *const options[] = {"--join",      "--name",           "--models",  "--model ",
                                          "--engine",    "--threads",        "--credit",  "--model-memory",
                                          "--log-level", "--describe-model", "--version", "examples:"};
    CHECK_INT(run("--help", NULL, NULL, NULL), 0);
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
        CHECK_MSG(strstr(out, options[i]), "%s", options[i]);
    CHECK_INT(run("--version", NULL, NULL, NULL), 0);
    CHECK_STR(out, "kiln-worker " KILN_VERSION "\n");
}

TEST(a_mistake_on_the_command_line_is_told_and_ends_it_with_1) {
    static const struct {
        const char *a, *b, *c, *d, *words;
    } bad[] = {
        {NULL, NULL, NULL, NULL, "--join ENDPOINT|FARMDIR is missing"},
        {"--jion", "x", NULL, NULL, "--jion: unknown option, did you mean --join?"},
        {"--jion=x", NULL, NULL, NULL, "--jion: unknown option, did you mean --join?"},
        {"--zzz", NULL, NULL, NULL, "--zzz: unknown option; see"},
        {"--join", NULL, NULL, NULL, "--join: expects a value"},
        {"more", "--join", "tcp://127.0.0.1:1", NULL, "more: unexpected argument"},
        {"--threads=x", NULL, NULL, NULL, "--threads: x is not between"},
        {"--threads=-1", NULL, NULL, NULL, "--threads: -1 is not between"},
        {"--credit=9", NULL, NULL, NULL, "--credit: 9 is not between 1 and 8"},
        {"--name", "two words", NULL, NULL, "--name: two words: expected"},
        {"--log-level=loud", NULL, NULL, NULL, "--log-level: loud: expected"},
        {"--join=tcp://127.0.0.1:1", "--engine=sim:mss=1", NULL, NULL, "did you mean ms?"},
        {"--join=tcp://127.0.0.1:1", "--engine=gpu", "--model=/nowhere", NULL, "/nowhere"},
        {"--join=tcp://127.0.0.1:1", NULL, NULL, NULL, "--models DIR or --model DIR is needed"},
        {"--join=tcp://127.0.0.1", "--engine=sim", NULL, NULL,
         "--join: tcp://127.0.0.1: expected tcp://HOST:PORT"},
        {"--join=/nowhere", "--engine=sim", NULL, NULL, "--join: /nowhere: no farm there"},
        {"--describe-model", "/nowhere", NULL, NULL, "/nowhere"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        int status = run(bad[i].a, bad[i].b, bad[i].c, bad[i].d);
        CHECK_MSG(status == 1, "case %zu: status %d: %s", i, status, err);
        CHECK_MSG(strstr(err, bad[i].words), "case %zu: [%s]", i, err);
        CHECK_STR(out, "");
    }
}

TEST(a_model_is_described_in_a_line_of_json) {
    CHECK_INT(run("--describe-model", KILN_SOURCE "/tests/golden/pipelines/v8", NULL, NULL), 0);
    CHECK(strncmp(out, "{\"name\":\"v8\",\"sha256\":\"", 23) == 0);
    CHECK(strchr(out, '\n') == out + strlen(out) - 1);
    CHECK_STR(err, "");
}

/* Until it says that it has started. */
static void await_start(int fd, char *text, size_t max) {
    size_t n = 0;
    ssize_t got;
    while (!strstr((text[n] = '\0', text), " started ") && (got = read(fd, text + n, max - 1 - n)) > 0)
        n += (size_t)got;
    CHECK_MSG(strstr(text, " started "), "%s", text);
}

static void ends_well_on(int sig, int times) {
    static const char *const words[] = {KILN_WORKER, "--join=tcp://127.0.0.1:1", "--engine=sim", NULL};
    int fds[2];
    char text[4096];
    uint64_t begun = kn_clock_ms();
    pid_t pid = start((char *const *)(uintptr_t)words, fds);
    await_start(fds[1], text, sizeof text);
    for (int i = 0; i < times; i++) kill(pid, sig);
    CHECK_INT(end_of(pid, fds), 0);
    CHECK(kn_clock_ms() - begun < 10000);
}

TEST(an_idle_worker_ends_at_once_on_a_signal) {
    ends_well_on(SIGTERM, 1);
    ends_well_on(SIGINT, 1);
    ends_well_on(SIGTERM, 2);
}

TEST(two_workers_without_a_name_get_two_names_and_a_name_comes_back) {
    static const char *const words[] = {KILN_WORKER, "--join=tcp://127.0.0.1:1", "--engine=sim", NULL};
    char text[3][4096], name[3][128], dir[] = "/tmp/kn-program-XXXXXX", lock[128];
    int fds[3][2];
    pid_t pid[3];
    CHECK(mkdtemp(dir) != NULL); /* other workers of this machine keep their locks elsewhere */
    setenv("XDG_RUNTIME_DIR", dir, 1);
    for (int i = 0; i < 2; i++) {
        pid[i] = start((char *const *)(uintptr_t)words, fds[i]);
        await_start(fds[i][1], text[i], sizeof text[i]);
        CHECK_INT(sscanf(strstr(text[i], "name="), "name=%127s", name[i]), 1);
    }
    CHECK(strcmp(name[0], name[1]) != 0);
    kill(pid[0], SIGTERM);
    CHECK_INT(end_of(pid[0], fds[0]), 0);
    pid[2] = start((char *const *)(uintptr_t)words, fds[2]);
    await_start(fds[2][1], text[2], sizeof text[2]);
    CHECK_INT(sscanf(strstr(text[2], "name="), "name=%127s", name[2]), 1);
    CHECK_STR(name[2], name[0]);
    for (int i = 1; i < 3; i++) {
        kill(pid[i], SIGTERM);
        CHECK_INT(end_of(pid[i], fds[i]), 0);
    }
    for (int i = 0; i < 2; i++) {
        snprintf(lock, sizeof lock, "%s/kiln-worker-%u-%d.lock", dir, (unsigned)getuid(), i);
        CHECK_INT(unlink(lock), 0);
    }
    CHECK_INT(rmdir(dir), 0);
}
