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
    static const char *const options[] = {"--join",         "--name",           "--models",  "--model ",
                                          "--engine",       "--threads",        "--credit",  "--model-memory",
                                          "--log-level",    "--describe-model", "--version", "--device",
                                          "--list-devices", "examples:"};
    CHECK_INT(run("--help", NULL, NULL, NULL), 0);
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
        CHECK_MSG(strstr(out, options[i]), "%s", options[i]);
    CHECK_INT(run("--version", NULL, NULL, NULL), 0);
    CHECK_STR(out, "kiln-worker " KILN_VERSION "\n");
}

/* Two GPUs that are not there: NVML is a shared object of the tests. */
static void with_fake_gpus(void) {
    setenv("LD_LIBRARY_PATH", KILN_FAKE_NVML_DIR, 1);
    unsetenv("CUDA_VISIBLE_DEVICES");
}

TEST(a_mistake_on_the_command_line_is_told_and_ends_it_with_1) {
    with_fake_gpus();
    static const struct {
        const char *a, *b, *c, *d, *words;
    } bad[] = {
        {NULL, NULL, NULL, NULL, "--join ENDPOINT|FARMDIR is missing"},
        {"--jion", "x", NULL, NULL, "--jion: unknown, did you mean --join?"},
        {"--jion=x", NULL, NULL, NULL, "--jion: unknown, did you mean --join?"},
        {"--zzz", NULL, NULL, NULL, "--zzz: unknown option; see"},
        {"--join", NULL, NULL, NULL, "--join: needs a value"},
        {"more", "--join", "ipc:///nowhere/farm", NULL, "more: unexpected argument"},
        {"--threads=x", NULL, NULL, NULL, "--threads: \"x\" is not a whole number"},
        {"--threads=-1", NULL, NULL, NULL, "--threads: -1 is not between"},
        {"--credit=9", NULL, NULL, NULL, "--credit: 9 is not between 1 and 8"},
        {"--name", "two words", NULL, NULL, "--name: two words: expected"},
        {"--log-level=loud", NULL, NULL, NULL, "--log-level: loud is none of"},
        {"--join=ipc:///nowhere/farm", "--engine=sim:mss=1", NULL, NULL, "did you mean ms?"},
        {"--join=ipc:///nowhere/farm", "--engine=gpu", "--model=/nowhere", NULL, "/nowhere"},
        {"--join=ipc:///nowhere/farm", NULL, NULL, NULL, "--models DIR or --model DIR is needed"},
        {"--join=tcp://127.0.0.1", "--engine=sim", NULL, NULL,
         "--join: tcp://127.0.0.1: expected tcp://HOST:PORT"},
        {"--join=/nowhere", "--engine=sim", NULL, NULL, "--join: /nowhere: no farm there"},
        {"--describe-model", "/nowhere", NULL, NULL, "/nowhere"},
        {"--join=ipc:///nowhere/farm", "--device=", NULL, NULL,
         "--device: expected cpu, all, a number or a UUID"},
        {"--join=ipc:///nowhere/farm", "--device=0", "--engine=cpu", NULL, "--device 0 and --engine cpu"},
        {"--join=ipc:///nowhere/farm", "--device=cpu", "--engine=cuda", NULL,
         "--device cpu and --engine cuda"},
        {"--join=ipc:///nowhere/farm", "--device=7", "--engine=sim", NULL,
         "--device: 7: not one of the GPUs here: 0 GPU-"},
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
    static const char *const words[] = {KILN_WORKER, "--join=ipc:///nowhere/farm", "--engine=sim", NULL};
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
    static const char *const words[] = {KILN_WORKER, "--join=ipc:///nowhere/farm", "--engine=sim", NULL};
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

TEST(gpus_are_listed_a_line_of_json_each) {
    with_fake_gpus();
    CHECK_INT(run("--list-devices", NULL, NULL, NULL), 0);
    CHECK(
        strstr(out,
               "{\"device\":0,\"uuid\":\"GPU-00000000-1111-2222-3333-444444444444\",\"name\":\"Fake 0\",") ==
        out);
    CHECK(strstr(out, "\n{\"device\":1,\"uuid\":\"GPU-00000001-"));
    setenv("CUDA_VISIBLE_DEVICES", "1", 1);
    CHECK_INT(run("--list-devices", NULL, NULL, NULL), 0);
    CHECK(strstr(out, "{\"device\":0,\"uuid\":\"GPU-00000001-") == out && !strstr(out, "\n{"));
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    CHECK_INT(run("--device=all", "--join=ipc:///nowhere/farm", "--engine=sim", NULL), 1);
    CHECK(strstr(err, "--device all: there is no GPU here"));
    unsetenv("CUDA_VISIBLE_DEVICES");
}

TEST(device_all_is_a_worker_a_gpu_that_comes_back_when_it_is_killed) {
    static const char *const words[] = {
        KILN_WORKER, "--device=all", "--name=node", "--join=ipc:///nowhere/farm", "--engine=sim", NULL};
    static const char *const more[] = {"name=node-gpu0", "name=node-gpu1"};
    int fds[2], victim = 0;
    size_t n = 0;
    ssize_t got = 1;
    static char text[65536];
    with_fake_gpus();
    pid_t pid = start((char *const *)(uintptr_t)words, fds);
    while (!(strstr(text, more[0]) && strstr(text, more[1])) && got > 0) {
        got = read(fds[1], text + n, sizeof text - 1 - n);
        if (got > 0) text[n += (size_t)got] = '\0';
    }
    CHECK_MSG(strstr(text, more[0]) && strstr(text, more[1]), "%s", text);
    const char *line = strstr(text, "worker_started worker=node-gpu1 device=GPU-00000001-");
    CHECK(line && sscanf(strstr(line, "pid="), "pid=%d", &victim) == 1);
    CHECK_INT(kill(victim, SIGKILL), 0);
    n = 0;
    text[0] = '\0';
    do {
        got = read(fds[1], text + n, sizeof text - 1 - n);
        if (got > 0) text[n += (size_t)got] = '\0';
    } while (!strstr(text, more[1]) && got > 0);
    CHECK_MSG(strstr(text, more[1]) && strstr(text, "worker_ended worker=node-gpu1"), "%s", text);
    CHECK(!strstr(text, more[0]));
    kill(pid, SIGTERM);
    CHECK_INT(end_of(pid, fds), 0);
}
