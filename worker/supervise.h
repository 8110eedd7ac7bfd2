/* `kiln-worker --device all`: a worker process for each GPU, and this one watches over them. It starts again
 * what ends, after a pause that grows while it ends young; it passes SIGTERM, SIGINT and SIGHUP on as
 * SIGTERM, and ends when all of them have.
 *
 * A process a GPU, not a thread: an error that sticks to a CUDA context, a hang or a crash takes one GPU's
 * work down and no other's. The children are in process groups of their own (Ctrl-C reaches this one, which
 * drains them) and get SIGTERM should it be killed. One thread; it takes over the signals of the process. */
#ifndef KILN_WORKER_SUPERVISE_H
#define KILN_WORKER_SUPERVISE_H

#include "worker/device.h"

struct supervise_options {
    const char *program;
    char *const *words; /* argv, its [0] too; each child gets them with --device UUID, and --name NAME-gpuN
                            or --name-base NAME-gpuN */
    const char *name;   /* of this machine's workers: NAME-gpu0, NAME-gpu1 … */
    bool chosen;        /* a person chose the name: else the farm may add a number to it */
    const char *const *uuids;   /* one a child */
    int count;                  /* up to DEVICES_MAX */
    int pause_ms, pause_max_ms; /* before the first start again, and the longest; 0: 500 and 30,000 */
    int young_ms;               /* who lived for less waits longer the next time; 0: 60,000 */
    int patience_ms;            /* from a signal to SIGKILL; 0: 25,000 */
};

/* Runs until all have ended for good: by a signal to this process, by draining (status 0), or because one
 * could not be started at all (status 1 at its first start: what it was told is wrong). Returns the status to
 * end with: 0, or 1 when one could not be started. */
int supervise_run(const struct supervise_options *opt);

#endif
