/* See farmdir.h. */
#include "cli/farm/farmdir.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hash.h"
#include "cli/cli.h"

int farmdir_choose(const char *farm_option, char out[KN_PATH_MAX], bool *is_endpoint, struct kn_err *err) {
    const char *farm = farm_option ? farm_option : getenv("KILN_HOME"), *home = getenv("HOME");
    *is_endpoint = false;
    int n;
    if (farm && farm[0]) {
        *is_endpoint = strstr(farm, "://") != NULL;
        n = snprintf(out, KN_PATH_MAX, "%s", farm);
    } else if (home && home[0] == '/') {
        n = snprintf(out, KN_PATH_MAX, "%s/.kiln", home);
    } else {
        return kn_err_set(err, KN_EINVAL, "--farm: not given, and neither KILN_HOME nor HOME is set");
    }
    if (n >= KN_PATH_MAX) return kn_err_set(err, KN_ELIMIT, "--farm: too long");
    return KN_OK;
}

int farmdir_path(const struct farmdir *f, const char *name, char out[KN_PATH_MAX]) {
    return kn_fs_join(out, KN_PATH_MAX, f->dir, name);
}

static int own_dir(const char *path, struct kn_err *err) {
    struct stat st;
    if (mkdir(path, 0700) && errno != EEXIST) return kn_err_set(err, KN_EIO, "%s: %s", path, strerror(errno));
    if (lstat(path, &st) || !S_ISDIR(st.st_mode) || st.st_uid != geteuid())
        return kn_err_set(err, KN_EIO, "%s: is there already, and is not a directory of this user", path);
    if (chmod(path, 0700)) return kn_err_set(err, KN_EIO, "%s: %s", path, strerror(errno));
    return KN_OK;
}

/* A folder that this user may not write is the place that was named, not the farm. */
static int name_farm(const char *dir, int why, struct kn_err *err) {
    return kn_err_set(
        err, KN_EPERM,
        "the farm's folder %s cannot be made: %s; name one that you may write (--farm DIR, or KILN_HOME)",
        dir, strerror(why));
}

int farmdir_find(const char *dir, struct farmdir *out, struct kn_err *err) {
    memset(out, 0, sizeof *out);
    char *real = realpath(dir, NULL);
    if (!real) return kn_err_set(err, KN_EIO, "%s: %s", dir, strerror(errno));
    int n = snprintf(out->dir, sizeof out->dir, "%s", real);
    free(real);
    if (n >= (int)sizeof out->dir - 64)
        return kn_err_set(err, KN_ELIMIT, "%.200s: the path is too long", dir);

    unsigned hash = (unsigned)kn_hash64(out->dir, strlen(out->dir), 1);
    snprintf(out->runtime, sizeof out->runtime, "/tmp/kiln-%u-%08x", (unsigned)geteuid(), hash);
    snprintf(out->redis_socket, sizeof out->redis_socket, "%s/redis.sock", out->runtime);
    snprintf(out->endpoint, sizeof out->endpoint, "ipc://%s/farm.sock", out->runtime);
    return KN_OK;
}

int farmdir_create(const char *dir, struct farmdir *out, struct kn_err *err) {
    static const char *const below[] = {"", "run", "log", "redis"};
    char path[KN_PATH_MAX];
    for (size_t i = 0; i < sizeof below / sizeof below[0]; i++) {
        int rc = kn_fs_join(path, sizeof path, dir, below[i]);
        if (rc) return kn_err_set(err, rc, "%.200s: the path is too long", dir);
        rc = kn_fs_mkdirs(path, 0700, err);
        if (rc && (errno == EACCES || errno == EPERM || errno == EROFS)) rc = name_farm(dir, errno, err);
        if (rc) return rc;
    }
    int rc = farmdir_find(dir, out, err);
    return rc ? rc : own_dir(out->runtime, err);
}

/* Opens DIR/name and locks it. KN_EAGAIN: somebody holds it. */
static int lock_file(const char *dir, const char *name, int *fd, struct kn_err *err) {
    char path[KN_PATH_MAX];
    int rc = kn_fs_join(path, sizeof path, dir, name);
    if (rc) return kn_err_set(err, rc, "%.200s: the path is too long", dir);
    int f = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (f < 0)
        return errno == EACCES || errno == EROFS ? name_farm(dir, errno, err)
                                                 : kn_err_set(err, KN_EIO, "%s: %s", path, strerror(errno));
    int rc2 = 0;
    for (int i = 0; i < 5; i++) { /* is_held() holds it for a moment */
        if (i > 0) usleep(10000);
        rc2 = flock(f, LOCK_EX | LOCK_NB);
        if (rc2 == 0 || errno != EWOULDBLOCK) break;
    }
    if (rc2) {
        int e = errno;
        close(f);
        return kn_err_set(err, e == EWOULDBLOCK ? KN_EAGAIN : KN_EIO, "%s: %s", path, strerror(e));
    }
    *fd = f;
    return KN_OK;
}

int farmdir_lock(const char *dir, int *fd, struct kn_err *err) {
    int rc = lock_file(dir, "lock", fd, err);
    return rc == KN_EAGAIN ? kn_err_set(err, KN_EEXIST, "%s: a farm is up already", dir) : rc;
}

int farmdir_use(const char *dir, int *fd, struct kn_err *err) {
    int rc = lock_file(dir, "users", fd, err);
    return rc == KN_EAGAIN ? kn_err_set(err, rc, "%s: the farm is ending", dir) : rc;
}

static bool is_held(const char *dir, const char *name) {
    char path[KN_PATH_MAX];
    if (kn_fs_join(path, sizeof path, dir, name)) return false;
    int f = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (f < 0) return false;
    bool locked = flock(f, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    close(f);
    return locked;
}

bool farmdir_is_locked(const char *dir) {
    return is_held(dir, "lock");
}

bool farmdir_is_used(const char *dir) {
    return is_held(dir, "users");
}

static int pid_path(const char *dir, const char *name, char out[KN_PATH_MAX]) {
    return snprintf(out, KN_PATH_MAX, "%s/run/%s.pid", dir, name) < KN_PATH_MAX ? KN_OK : KN_ELIMIT;
}

pid_t farmdir_pid(const char *dir, const char *name) {
    char path[KN_PATH_MAX];
    if (pid_path(dir, name, path)) return 0;
    FILE *f = kn_fs_stream(path, NULL);
    if (!f) return 0;
    int pid = 0;
    if (fscanf(f, "%d", &pid) != 1 || pid <= 1 || (kill(pid, 0) && errno == ESRCH)) pid = 0;
    fclose(f);
    return pid;
}

int farmdir_write_pid(const struct farmdir *f, const char *name, pid_t pid, struct kn_err *err) {
    char path[KN_PATH_MAX], text[32];
    if (pid_path(f->dir, name, path))
        return kn_err_set(err, KN_ELIMIT, "%.200s: the path is too long", f->dir);
    int n = snprintf(text, sizeof text, "%d\n", (int)pid);
    return kn_fs_replace(path, text, (size_t)n, false, err);
}

void farmdir_remove_pid(const struct farmdir *f, const char *name) {
    char path[KN_PATH_MAX];
    if (pid_path(f->dir, name, path) == KN_OK) unlink(path);
}

int farmdir_endpoint(const char *farm_option, int wait_ms, char out[KN_ENDPOINT_MAX + 1],
                     struct kn_err *err) {
    char farm[KN_PATH_MAX];
    bool is_endpoint;
    int rc = farmdir_choose(farm_option, farm, &is_endpoint, err);
    out[0] = '\0';
    if (rc) return rc;
    if (is_endpoint) {
        if (strlen(farm) > KN_ENDPOINT_MAX) return kn_err_set(err, KN_EINVAL, "--farm: too long");
        strcpy(out, farm);
        return KN_OK;
    }
    char path[KN_PATH_MAX];
    rc = kn_fs_join(path, sizeof path, farm, "endpoint");
    if (rc) return kn_err_set(err, rc, "--farm: too long");
    uint64_t end = kn_clock_ms() + (uint64_t)wait_ms;
    for (;;) {
        struct kn_buf b;
        kn_buf_init(&b, KN_ENDPOINT_MAX + 2);
        rc = kn_fs_read(path, &b, NULL);
        if (rc == KN_OK && b.len > 0) {
            size_t len = strcspn(b.data, "\r\n");
            if (len > KN_ENDPOINT_MAX) len = KN_ENDPOINT_MAX;
            memcpy(out, b.data, len);
            out[len] = '\0';
        }
        kn_buf_fini(&b);
        if (rc == KN_OK && out[0]) return KN_OK;
        if (access(farm, X_OK) && errno == EACCES)
            return kn_err_set(
                err, KN_EPERM,
                "%s: Permission denied: it is another user's farm; use one of your own (--farm DIR)", farm);
        /* a farm that is just starting has its lock and no endpoint yet */
        if (kn_clock_ms() >= end || !farmdir_is_locked(farm) || cli_interrupted)
            return kn_err_set(err, KN_ENOENT, "no farm is up at %s (kiln up starts one)", farm);
        usleep(50000);
    }
}

int farmdir_programs(char out[KN_PATH_MAX], struct kn_err *err) {
    char self[KN_PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0) return kn_err_set(err, KN_EIO, "/proc/self/exe: %s", strerror(errno));
    self[n] = '\0';
    char *slash = strrchr(self, '/');
    if (slash) *slash = '\0';
    memcpy(out, self, strlen(self) + 1);
    return KN_OK;
}

int farmdir_sibling(const char *program, char out[KN_PATH_MAX], struct kn_err *err) {
    char dir[KN_PATH_MAX];
    int rc = farmdir_programs(dir, err);
    if (rc) return rc;
    rc = kn_fs_join(out, KN_PATH_MAX, dir, program);
    if (rc) return kn_err_set(err, rc, "%.200s: the path is too long", dir);
    if (access(out, X_OK)) return kn_err_set(err, KN_ECONFIG, "%s: not there; it belongs beside kiln", out);
    return KN_OK;
}

void farmdir_redis(char out[KN_PATH_MAX]) {
    if (farmdir_sibling("kiln-redis-server", out, NULL)) strcpy(out, "redis-server");
}

bool farmdir_shipped_model(char out[KN_PATH_MAX]) {
    static const char *const places[] = {"../../models/tiny", "../share/kiln/models/tiny"};
    char dir[KN_PATH_MAX], path[KN_PATH_MAX];
    if (farmdir_programs(dir, NULL)) return false;
    for (size_t i = 0; i < 2; i++) {
        if (kn_fs_join(path, sizeof path, dir, places[i])) continue;
        char *real = realpath(path, NULL);
        if (!real) continue;
        int n = snprintf(out, KN_PATH_MAX, "%s", real);
        free(real);
        if (n >= KN_PATH_MAX) continue;
        if (kn_fs_join(path, sizeof path, out, "model_index.json") == KN_OK && kn_fs_exists(path))
            return true;
    }
    return false;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw) {
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path) && errno != ENOENT ? -1 : 0;
}

int farmdir_remove_tree(const char *path, struct kn_err *err) {
    if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT) && errno != ENOENT)
        return kn_err_set(err, KN_EIO, "%s: %s", path, strerror(errno));
    return KN_OK;
}
