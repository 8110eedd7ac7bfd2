/* Addresses of a Redis, as people write them. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/redis_address.h"
#include "tests/unit/check.h"

static struct kn_redis_address a;
static struct kn_err err;
static char file[64], at_file[80];

static int in_file(const char *text, unsigned mode) {
    strcpy(file, "/tmp/kiln-test-XXXXXX");
    int fd = mkstemp(file);
    CHECK(fd >= 0 && fchmod(fd, mode) == 0);
    CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
    snprintf(at_file, sizeof at_file, "@%s", file);
    err = (struct kn_err){0};
    int rc = kn_redis_address_read(at_file, &a, &err);
    unlink(file);
    return rc;
}

static void expect(const char *text, const char *host, int port, bool tls, int db, const char *shown) {
    CHECK_MSG(kn_redis_address_read(text, &a, &err) == KN_OK, "%s: %s", text, err.text);
    CHECK_STR(a.host, host);
    CHECK_INT(a.port, port);
    CHECK(a.tls == tls);
    CHECK_INT(a.db, db);
    CHECK_STR(a.shown, shown);
    CHECK_STR(a.password, "");
}

TEST(every_form_is_read) {
    expect("unix:/run/redis.sock", "/run/redis.sock", 0, false, 0, "unix:/run/redis.sock");
    expect("unix:///run/redis.sock", "/run/redis.sock", 0, false, 0, "unix:/run/redis.sock");
    expect("10.0.0.1:6379", "10.0.0.1", 6379, false, 0, "10.0.0.1:6379");
    expect("[::1]:7000", "::1", 7000, false, 0, "::1:7000");
    expect("redis://cache", "cache", 6379, false, 0, "cache:6379");
    expect("redis://cache:7000/3", "cache", 7000, false, 3, "cache:7000");
    expect("redis://[::1]:7000/", "::1", 7000, false, 0, "::1:7000");
    expect("rediss://cache.example:6380/15", "cache.example", 6380, true, 15, "rediss://cache.example:6380");
}

TEST(what_is_none_is_refused) {
    static const char *const bad[] = {"",
                                      "cache",
                                      "cache:0",
                                      "cache:70000",
                                      "cache:7x",
                                      ":6379",
                                      "unix:",
                                      "redis://",
                                      "redis://:7000",
                                      "redis://cache/x",
                                      "redis://cache/99999",
                                      "redis://cache:/1",
                                      "http://cache:80",
                                      "redis://ca%zzche:1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK_MSG(kn_redis_address_read(bad[i], &a, &err) == KN_EINVAL, "%s", bad[i]);
    CHECK_INT(kn_redis_address_read("@/nowhere", &a, &err), KN_ENOENT);
}

TEST(a_password_comes_from_a_file_of_its_user_alone_and_is_in_no_words) {
    CHECK_INT(in_file("redis://kiln:se%2Fcr%40et@cache:7000/2\n", 0600), KN_OK);
    CHECK_STR(a.user, "kiln");
    CHECK_STR(a.password, "se/cr@et");
    CHECK_STR(a.host, "cache");
    CHECK_STR(a.shown, "cache:7000");
    CHECK_INT(in_file("rediss://:secret@cache", 0600), KN_OK);
    CHECK_STR(a.user, "");
    CHECK_STR(a.password, "secret");
    CHECK_INT(in_file("unix://kiln:secret@/run/redis.sock", 0600), KN_OK);
    CHECK_STR(a.host, "/run/redis.sock");
    CHECK_STR(a.password, "secret");
    CHECK_INT(in_file("cache:7000", 0644), KN_OK); /* nothing to hide */
    CHECK_INT(in_file("redis://kiln:secret@cache", 0640), KN_EPERM);
    CHECK(!strstr(err.text, "secret"));
    CHECK_INT(in_file("redis://kiln:secret@cache:x", 0600), KN_EINVAL);
    CHECK(!strstr(err.text, "secret"));
    CHECK_INT(kn_redis_address_read("redis://kiln:secret@cache", &a, &err), KN_EINVAL);
    CHECK(strstr(err.text, "@FILE") && !strstr(err.text, "secret"));
    CHECK_INT(kn_redis_address_read("redis//kiln:secret@cache", &a, &err), KN_EINVAL);
    CHECK(!strstr(err.text, "secret"));
}
