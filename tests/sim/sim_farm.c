/* Random histories from a seed, with the core's promises checked after every step:
 *
 *     sim-farm --seeds 1..200 --steps 3000      each seed twice: both must have the same effects, bit for bit
 *     sim-farm --workers 2000 --steps 50000     a crowd
 *     sim-farm --seeds 17..17 --trace           tells the story of one
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/world.h"

int main(int argc, char **argv) {
    unsigned long long from = 1, to = 40, steps = 2000, workers = W_WORKERS;
    bool trace = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seeds") == 0 && i + 1 < argc) {
            if (sscanf(argv[++i], "%llu..%llu", &from, &to) != 2) goto usage;
        } else if (strcmp(argv[i], "--steps") == 0 && i + 1 < argc) {
            steps = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--workers") == 0 && i + 1 < argc) {
            workers = strtoull(argv[++i], NULL, 10);
            if (workers < 10 || workers > KN_WORKERS_MAX) goto usage;
        } else if (strcmp(argv[i], "--trace") == 0) {
            trace = true;
        } else {
            goto usage;
        }
    }
    if (trace) setvbuf(stdout, NULL, _IOLBF, 0);
    static struct world w;
    uint64_t all_steps = 0, commits = 0, fails = 0, deaths = 0, restarts = 0, alarms = 0, refused = 0;
    for (unsigned long long seed = from; seed <= to; seed++) {
        world_run(&w, seed, steps, (uint32_t)workers, trace);
        uint64_t hash = w.hash;
        all_steps += w.steps;
        commits += w.commits;
        fails += w.fails;
        deaths += w.deaths;
        restarts += w.restarts;
        alarms += w.alarms;
        refused += w.refused;
        world_end(&w);
        if (trace) continue;
        world_run(&w, seed, steps, (uint32_t)workers, false);
        if (w.hash != hash) {
            fprintf(stderr, "seed %llu: the second run was another one\n", seed);
            return 1;
        }
        world_end(&w);
    }
    printf(
        "%llu histories, %llu steps: %llu images committed, %llu failed, %llu workers died, %llu drained for "
        "faults, %llu restarts of the coordinator, %llu allocations refused\n",
        to - from + 1, (unsigned long long)all_steps, (unsigned long long)commits, (unsigned long long)fails,
        (unsigned long long)deaths, (unsigned long long)alarms, (unsigned long long)restarts,
        (unsigned long long)refused);
    return 0;
usage:
    fprintf(stderr, "usage: sim-farm [--seeds A..B] [--steps N] [--workers N] [--trace]\n");
    return 1;
}
