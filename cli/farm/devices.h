/* Chooses the GPUs that the workers of a farm on this machine get (--device). The cli has no CUDA and no
 * NVML: it asks kiln-worker. */
#ifndef KILN_CLI_FARM_DEVICES_H
#define KILN_CLI_FARM_DEVICES_H

#include "cli/cli.h"

#define CLI_DEVICES_MAX 64

struct worker_devices {
    char v[CLI_DEVICES_MAX][KN_DEVICE_MAX + 1]; /* as kiln-worker --device takes them */
    int count;                                  /* a worker each; 0: workers on the CPU */
};

/* By --device: cpu or not given, a list as in 0,1 or GPU-8f0b,GPU-99ac, or all. KN_EINVAL with what is wrong,
 * KN_ECONFIG with what kiln-worker says when there are none. */
KN_MUST_USE int devices_choose(const struct cli_options *o, struct worker_devices *out, struct kn_err *err);

#endif
