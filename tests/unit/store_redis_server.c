/* See store_redis_server.h. */
#include "tests/unit/store_redis_server.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/check.h"

bool test_redis_installed(void) {
    return system("command -v redis-server >/dev/null 2>&1") == 0;
}

static bool answers(const char *path) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    char answer[8] = "";
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool ok = connect(fd, (struct sockaddr *)&a, sizeof a) == 0 &&
              send(fd, "PING\r\n", 6, MSG_NOSIGNAL) == 6 && recv(fd, answer, 5, MSG_WAITALL) == 5 &&
              memcmp(answer, "+PONG", 5) == 0;
    close(fd);
    return ok;
}

void test_redis_again(struct test_redis *r) {
    char path[80];
    snprintf(path, sizeof path, "%s/s", r->dir);
    unlink(path);
    r->pid = fork();
    if (r->pid == 0) {
        int null = open("/dev/null", O_RDWR);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(null, 1);
        dup2(null, 2);
        execlp("redis-server", "redis-server", "--port", "0", "--unixsocket", path, "--dir", r->dir,
               "--appendonly", "yes", "--appendfsync", r->appendfsync, "--no-appendfsync-on-rewrite", "no",
               "--maxmemory-policy", "noeviction", "--save", "", "--daemonize", "no", (char *)NULL);
        _exit(127);
    }
    CHECK(r->pid > 0);
    for (int i = 0; i < 1000 && !answers(path); i++) usleep(10000);
    CHECK(answers(path));
}

void test_redis_start(struct test_redis *r, const char *appendfsync) {
    *r = (struct test_redis){.appendfsync = appendfsync};
    snprintf(r->dir, sizeof r->dir, "/tmp/kiln-redis-XXXXXX");
    CHECK(mkdtemp(r->dir) != NULL);
    snprintf(r->address, sizeof r->address, "unix:%s/s", r->dir);
    test_redis_again(r);
}

void test_redis_kill(struct test_redis *r) {
    if (r->pid <= 0) return;
    kill(r->pid, SIGKILL);
    waitpid(r->pid, NULL, 0);
    r->pid = 0;
}

void test_redis_end(struct test_redis *r) {
    char command[128];
    test_redis_kill(r);
    snprintf(command, sizeof command, "rm -rf %s", r->dir);
    CHECK_INT(system(command), 0);
}

const char *test_redis_ask(const struct test_redis *r, const char *command) {
    static char answer[4096];
    char line[1024];
    snprintf(line, sizeof line, "redis-cli -s %s/s %s", r->dir, command);
    FILE *f = popen(line, "r");
    CHECK(f != NULL);
    size_t n = fread(answer, 1, sizeof answer - 1, f);
    pclose(f);
    while (n > 0 && answer[n - 1] == '\n') n--;
    answer[n] = 0;
    return answer;
}
