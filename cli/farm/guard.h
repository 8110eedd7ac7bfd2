/* Two processes watch over a farm: the supervisor, and the guard, its parent, which does nothing but wait. Either may be
 * killed, and the other goes on at once with what the farm is (shared memory has it) and all of its processes:
 *
 *     supervisor killed ──▶ the guard forks another
 *     guard killed ──▶ the supervisor becomes the guard, and forks another supervisor
 *
 * The farm's processes are children of either or of neither, and go on meanwhile. Whose parent was killed comes to the
 * guard (a child subreaper), which writes down how it ended for the supervisor (struct kn_end). The guard passes signals
 * on, and ends when the supervisor has. When both are killed at once, the processes go on and nobody watches. */
#ifndef KILN_CLI_FARM_GUARD_H
#define KILN_CLI_FARM_GUARD_H

#include <signal.h>
#include <stdbool.h>

#include "base/err.h"

#define GUARD_GONE SIGUSR1 /* the supervisor gets it when its guard was killed: guard_split() again */

struct guard {
    int ends[2]; /* from the guard to the supervisor */
};

KN_MUST_USE int guard_init(struct guard *g); /* KN_EIO */
/* Makes this process the guard, and returns in a child of it that is the supervisor; never fails, and takes its time
 * where there is no memory for a process. True when there was another supervisor before. */
bool guard_split(struct guard *g, bool again);

#endif
