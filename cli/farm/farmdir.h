/* A farm's folder, and where its sockets are.
 *
 *   DIR/endpoint     what clients and workers connect to; there while the farm is up
 *   DIR/lock         held (flock) by what supervises the farm, for as long as it lives
 *   DIR/users        a private farm's: held (flock) by the render whose farm it is
 *   DIR/run/         pid files: supervisor, redis, coordinator, worker-0 …
 *   DIR/log/         one file a process
 *   DIR/redis/       Redis' append-only file;  DIR/objects/  the pictures
 *   DIR/runs/        the private farms of renders, a folder each (runs.h)
 *
 * Unix sockets have paths below 108 bytes, so they are not in DIR but in a short runtime directory of this
 * user alone: /tmp/kiln-UID-HASH, HASH of DIR's real path. ($XDG_RUNTIME_DIR would be the place, but it goes
 * when the person logs out, and a farm stays.) */
#ifndef KILN_CLI_FARM_FARMDIR_H
#define KILN_CLI_FARM_FARMDIR_H

#include <sys/types.h>

#include "base/fs.h"
#include "base/limits.h"

#define FARMDIR_SOCKET_MAX 100

struct farmdir {
    char dir[KN_PATH_MAX]; /* absolute */
    char runtime[FARMDIR_SOCKET_MAX - 20];
    char redis_socket[FARMDIR_SOCKET_MAX];
    char endpoint[KN_ENDPOINT_MAX + 1]; /* ipc://… of its own coordinator */
};

/* The farm that options and environment mean; an endpoint is given as it is and *is_endpoint set. */
KN_MUST_USE int farmdir_choose(const char *farm_option, char out[KN_PATH_MAX], bool *is_endpoint,
                               struct kn_err *err);
/* Makes DIR and the runtime directory (0700, this user's). */
KN_MUST_USE int farmdir_create(const char *dir, struct farmdir *out, struct kn_err *err);
/* Fills out for a DIR that exists, and makes nothing. */
KN_MUST_USE int farmdir_find(const char *dir, struct farmdir *out, struct kn_err *err);
/* DIR/name. */
KN_MUST_USE int farmdir_path(const struct farmdir *f, const char *name, char out[KN_PATH_MAX]);
/* Takes the lock. *fd ≥ 0 is the caller's (close-on-exec). KN_EEXIST: somebody holds it. */
KN_MUST_USE int farmdir_lock(const char *dir, int *fd, struct kn_err *err);
bool farmdir_is_locked(const char *dir); /* a farm is up there, or starting, or ending */
/* The render that a private farm works for says so as long as it lives; without it the farm ends after a while.
 * *fd ≥ 0 is the caller's (close-on-exec); closing it ends the use. KN_EAGAIN: the farm is ending, or another
 * uses it. */
KN_MUST_USE int farmdir_use(const char *dir, int *fd, struct kn_err *err);
bool farmdir_is_used(const char *dir);
/* A pid file's number if that process lives, else 0. */
pid_t farmdir_pid(const char *dir, const char *name);
KN_MUST_USE int farmdir_write_pid(const struct farmdir *f, const char *name, pid_t pid, struct kn_err *err);
void farmdir_remove_pid(const struct farmdir *f, const char *name);

/* The farm's endpoint if one is up (or comes up within wait_ms); KN_ENOENT otherwise. */
KN_MUST_USE int farmdir_endpoint(const char *farm_option, int wait_ms, char out[KN_ENDPOINT_MAX + 1],
                                 struct kn_err *err);

/* The folder of kiln's own program, where its siblings are; and the model that ships. */
KN_MUST_USE int farmdir_programs(char out[KN_PATH_MAX], struct kn_err *err);
KN_MUST_USE int farmdir_sibling(const char *program, char out[KN_PATH_MAX], struct kn_err *err);
/* The Redis to start: that of an installed tree, kiln-redis-server beside kiln, else "redis-server" from
 * PATH. */
void farmdir_redis(char out[KN_PATH_MAX]);
bool farmdir_shipped_model(char out[KN_PATH_MAX]);
/* rm -r, nothing outside (links are removed, not followed). */
KN_MUST_USE int farmdir_remove_tree(const char *path, struct kn_err *err);

#endif
