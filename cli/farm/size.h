/* How many workers a farm on this machine starts, with how many threads and how much memory each: what the options
 * say, held against what the machine has and what the models take. */
#ifndef KILN_CLI_FARM_SIZE_H
#define KILN_CLI_FARM_SIZE_H

#include "base/machine.h"
#include "cli/cli.h"
#include "cli/farm/devices.h"

/* The work that a farm is sized for: the models, and the largest size that is asked for (0: each model's default). */
struct farm_load {
    const struct kn_model_info *models;
    size_t model_count;
    uint32_t width, height;
};

struct farm_size {
    int workers, threads;
    bool nodes;          /* worker i stays on the i-th NUMA node of `machine`, with that one's cores */
    uint64_t memory_mib; /* that each may use; 0: not said */
    struct kn_machine machine;
};

/* On GPUs there is a worker a device, and their memory is theirs to see to. On the CPU the default is a worker a
 * NUMA node with all of its threads: a worker renders an image a thread, and its threads share the weights. Where
 * the memory does not carry that many, there are fewer; KN_ECONFIG when it does not carry one, or not as many as
 * --workers says, and err says what it would. */
KN_MUST_USE int farm_size(const struct cli_options *o, const struct worker_devices *d,
                          const struct farm_load *load, struct farm_size *out, struct kn_err *err);
/* The same for a machine that is given (in *out). */
KN_MUST_USE int farm_size_on(const struct cli_options *o, const struct worker_devices *d,
                             const struct farm_load *load, struct farm_size *out, struct kn_err *err);
/* How many workers with this model fit, each with one picture of this size in work. INT_MAX: it is not known what it
 * takes. */
int farm_fits(const struct kn_machine *m, const struct kn_model_info *model, uint32_t width, uint32_t height);

#endif
