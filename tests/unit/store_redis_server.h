/* A private redis-server for a test: on a Unix socket in a folder of its own, ended and removed with it. */
#ifndef KN_TESTS_UNIT_STORE_REDIS_SERVER_H
#define KN_TESTS_UNIT_STORE_REDIS_SERVER_H

#include <stdbool.h>
#include <sys/types.h>

struct test_redis {
    char dir[64];
    char address[96]; /* unix:… */
    const char *appendfsync;
    pid_t pid;
};

bool test_redis_installed(void);
/* Makes the folder and starts it; with the settings that kiln wants, but for appendfsync as given. */
void test_redis_start(struct test_redis *r, const char *appendfsync);
void test_redis_kill(struct test_redis *r);  /* -9 */
void test_redis_again(struct test_redis *r); /* starts it on the same folder */
void test_redis_end(struct test_redis *r);
/* redis-cli's part, for looking: the answer to one command, as redis-cli prints it. */
const char *test_redis_ask(const struct test_redis *r, const char *command);

#endif
