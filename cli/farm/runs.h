/* The private farms of renders: one for each run, in a folder of its own.
 *
 *   RUNS/ID/             a farm's folder (farmdir.h) on local disk: sockets' names, Redis, logs, pid files
 *   RUNS/ID/output       the path of the output folder that it works for
 *   RUNS/ID/plan         what it was started with; another plan needs another start
 *   OUT/.kiln-farm/run   the path of RUNS/ID: how the same command finds its run again
 *   OUT/.kiln-farm/objects/   the pictures that the farm has committed, on the file system of the output folder,
 *                        so that they are renamed out of it
 *
 * RUNS is $KILN_HOME/runs, else ~/.kiln/runs. OUT may be on a network file system and used from several
 * machines: nothing is locked in OUT/.kiln-farm, and a run that OUT names counts only where its folder is and
 * names OUT in turn. A run that ends well removes both folders; what a killed one left goes on with the same
 * command, or is removed by `kiln doctor --repair`. */
#ifndef KILN_CLI_FARM_RUNS_H
#define KILN_CLI_FARM_RUNS_H

#include "cli/farm/farmdir.h"

struct run {
    struct farmdir dir;         /* RUNS/ID */
    char out[KN_PATH_MAX];      /* OUT, its real path */
    char pictures[KN_PATH_MAX]; /* OUT/.kiln-farm */
    int users_fd;               /* held while this process works with it; -1: not */
};

/* True when an earlier run into OUT is there to go on with. Makes and holds nothing. */
bool run_find(const char *out, struct run *r);
/* The same, else a new one; makes the folders and holds it. Waits for one that is just ending. */
KN_MUST_USE int run_open(const char *out, struct run *r, struct kn_err *err);
/* True when `dir` is a private farm's folder. */
bool run_is_at(const char *dir);
/* True when RUNS/ID/plan is `plan`. */
bool run_has_plan(const struct run *r, const char *plan);
KN_MUST_USE int run_write_plan(const struct run *r, const char *plan, struct kn_err *err);
void run_close(struct run *r); /* it stays, for the same command */
/* Removes both folders. Nothing of it runs any more. */
void run_remove(struct run *r);

enum run_state {
    RUN_ALIVE,     /* its render is at work */
    RUN_ABANDONED, /* its render is gone; it ends within a minute */
    RUN_DEAD,      /* a killed one left it */
};

struct run_info {
    char dir[KN_PATH_MAX], out[KN_PATH_MAX]; /* out: "" when it does not say */
    enum run_state state;
    uint64_t age_ms, bytes;
};

/* Calls `each` for every run below RUNS of option or environment. KN_OK when there is no such folder. */
KN_MUST_USE int runs_each(void (*each)(void *ctx, const struct run_info *i), void *ctx, struct kn_err *err);
/* Removes a dead run. KN_EAGAIN: it lives. */
KN_MUST_USE int runs_remove_dead(const struct run_info *i, struct kn_err *err);

#endif
