/* The private farm's supervisor: starts a farm on this machine and keeps it up: redis-server,
 * kiln-coordinator, kiln-workers.
 *
 * supervise_start() forks the supervisor: a process of its own session with one thread, which holds the
 * farm's lock while it lives, starts its children (each in a process group of its own, so that Ctrl-C reaches
 * the person's command only), writes their pid files and logs, and starts again what dies, after a pause that
 * grows from 0.2 s to 5 s while it dies young. A child that ends with status 0 on its own wish (a drained
 * worker) is not started again.
 *
 * It ends the farm on SIGTERM (workers drain first) and on SIGQUIT (nothing is waited for). A private farm's
 * supervisor ends it also when the render that it works for (farmdir_use) has been gone for a minute: until
 * then the same command finds it going on. A supervisor that is killed is followed at once by another, which goes on
 * with the farm's processes (guard.h). */
#ifndef KILN_CLI_FARM_SUPERVISE_H
#define KILN_CLI_FARM_SUPERVISE_H

#include "cli/cli.h"
#include "cli/farm/devices.h"
#include "cli/farm/farmdir.h"
#include "cli/farm/size.h"

struct supervise_config {
    const struct farmdir *farm;
    int lock_fd;          /* taken over by the supervisor; closed here */
    bool private_farm;    /* ends when its render is gone */
    const char *pictures; /* the folder that gets objects/; NULL: the farm's own */
    const struct farm_size *size;
    const struct worker_devices *devices; /* a worker each; none: on the CPU */
    const char *engine;                   /* NULL: the worker's default */
    const char *const *models;            /* --models */
    size_t model_dir_count;
    const char *model;         /* --model, or NULL */
    const char *default_model; /* its name for who names none, or NULL: the one that ships */
    const char *const *listen;
    size_t listen_count;
    int data_port; /* 0: any */
    bool allow_volatile;
    const char *redis; /* NULL: its own */
};

struct supervise_handle {
    pid_t pid; /* of the guard, which passes signals on */
    char dir[KN_PATH_MAX];
    int news_fd; /* lines of the supervisor: "ready", "failed WHY", "note WHAT"; -1: none come */
    char line[1024];
    size_t line_len;
};

/* Returns when the coordinator is ready, or with what prevented it. Workers are then starting. */
KN_MUST_USE int supervise_start(const struct supervise_config *c, struct supervise_handle *out,
                                struct kn_err *err);
/* The next line of news if there is one (not "ready"): *out borrows until the next call; NULL when there is
 * none. False: the supervisor is gone. */
bool supervise_news(struct supervise_handle *h, const char **out);
/* Ends a farm that this process started, at once, and waits for that. */
void supervise_end(struct supervise_handle *h);
/* The same for a farm of another process, by its folder. False: it does not end. */
KN_MUST_USE bool supervise_stop(const char *dir);
/* Lets a farm that stays go its way. */
void supervise_leave(struct supervise_handle *h);

/* How many processes of a farm run that nobody watches over: supervisor and guard were killed at once. `end`: ends
 * them. The caller holds the farm's lock. */
size_t supervise_leftovers(const struct farmdir *f, bool end);

/* The last line of a log that says something, for a person. */
void supervise_last_words(const struct farmdir *f, const char *process, char *out, size_t out_max);

#endif
