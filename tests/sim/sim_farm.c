/* Random histories from a seed, with the core's promises checked after every step:
 *
 *     sim-farm --seeds 1..200 --steps 3000      each seed twice: both must have the same effects, bit for bit
 *     sim-farm --sick --seeds 1..5000           fleets with sick workers, and guilty tasks
 *     sim-farm --hostile --once --seeds 1..5000  power failures, two coordinators, half-open connections; each once
 *     sim-farm --workers 2000 --steps 50000     a crowd
 *     sim-farm --seeds 17..17 --trace           tells the story of one
 *     sim-farm --seeds 1..40 --digests          a line a history: its seed and the digest of all its effects
 *     sim-farm --compare FILE                   plays the histories of such a list and compares the digests
 *
 * A change that means to keep the core's behaviour leaves the digests alone. A change that means to change it
 * writes the list (tests/sim/digests.txt) again, and its commit says why. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/planted.h"
#include "tests/sim/world.h"

struct totals {
    uint64_t steps, commits, fails, deaths, restarts, alarms, refused, asked, refusals, voided, answers;
};

struct options {
    unsigned long long from, to, steps, workers;
    bool trace, digests, sick, hostile, once;
    const char *compare;
};

static struct world w;

#ifdef KILN_PLANTED
enum kn_planted_fault kn_planted;

#define ROW(name, what) {#name, what},
static const struct { const char *name, *what; } faults[] = {KN_PLANTED_TABLE(ROW)};

static bool plant(const char *name) {
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        if (strcmp(faults[i].name, name) != 0) continue;
        kn_planted = (enum kn_planted_fault)i;
        return true;
    }
    return false;
}

static void list_planted(void) {
    for (size_t i = 1; i < sizeof faults / sizeof *faults; i++)
        printf("%s %s\n", faults[i].name, faults[i].what);
}
#endif

/* Plays one history and gives its digest. */
static uint64_t play(const struct options *o, unsigned long long seed, struct totals *sum) {
    if (o->sick)
        world_sick(&w, seed, o->trace);
    else if (o->hostile)
        world_hostile(&w, seed, o->steps, o->trace);
    else
        world_run(&w, seed, o->steps, (uint32_t)o->workers, o->trace);
    uint64_t digest = w.hash;
    sum->steps += w.steps;
    sum->commits += w.commits;
    sum->fails += w.fails;
    sum->deaths += w.deaths;
    sum->restarts += w.restarts;
    sum->alarms += w.alarms;
    sum->refused += w.refused;
    sum->asked += w.asked;
    sum->refusals += w.refusals;
    sum->voided += w.voided;
    sum->answers += w.answers;
    world_end(&w);
    return digest;
}

/* Each line: seed and digest; lines that begin with # are remarks. */
static int compare(const struct options *o) {
    FILE *list = fopen(o->compare, "r");
    if (!list) {
        fprintf(stderr, "%s: cannot be opened\n", o->compare);
        return 1;
    }
    struct totals sum = {0};
    char line[256];
    unsigned number = 0, histories = 0, different = 0;
    while (fgets(line, sizeof line, list)) {
        number++;
        if (line[0] == '#' || line[0] == '\n') continue;
        unsigned long long seed;
        uint64_t expected;
        if (sscanf(line, "%llu %" SCNx64, &seed, &expected) != 2) {
            fprintf(stderr, "%s:%u: not a seed and a digest\n", o->compare, number);
            different++;
            break;
        }
        histories++;
        uint64_t digest = play(o, seed, &sum);
        if (digest == expected) continue;
        different++;
        fprintf(stderr, "%s:%u: seed %llu: %016" PRIx64 " expected, %016" PRIx64 " came\n", o->compare,
                number, seed, expected, digest);
    }
    fclose(list);
    printf("%u histories, %u of them other than in %s\n", histories, different, o->compare);
    return histories > 0 && different == 0 ? 0 : 1;
}

/* Plays each history twice. */
static int play_all(const struct options *o) {
    struct totals sum = {0}, again = {0};
    for (unsigned long long seed = o->from; seed <= o->to; seed++) {
        uint64_t digest = play(o, seed, &sum);
        if (o->digests) printf("%llu %016" PRIx64 "\n", seed, digest);
        if (o->trace || o->digests || o->once) continue;
        if (play(o, seed, &again) != digest) {
            fprintf(stderr, "seed %llu: the second run was another one\n", seed);
            return 1;
        }
    }
    if (o->digests) return 0;
    printf("%llu histories, %" PRIu64 " steps: %" PRIu64 " images committed, %" PRIu64 " failed, %" PRIu64
           " workers died, %" PRIu64 " held for faults, %" PRIu64 " restarts of the coordinator, %" PRIu64
           " allocations refused, %" PRIu64 " workers asked for their name, %" PRIu64
           " newcomers refused, %" PRIu64 " objects lost, %" PRIu64 " wishes answered\n",
           o->to - o->from + 1, sum.steps, sum.commits, sum.fails, sum.deaths, sum.alarms, sum.restarts,
           sum.refused, sum.asked, sum.refusals, sum.voided, sum.answers);
    return 0;
}

int main(int argc, char **argv) {
    struct options o = {.from = 1, .to = 40, .steps = 2000, .workers = W_WORKERS};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seeds") == 0 && i + 1 < argc) {
            if (sscanf(argv[++i], "%llu..%llu", &o.from, &o.to) != 2) goto usage;
        } else if (strcmp(argv[i], "--steps") == 0 && i + 1 < argc) {
            o.steps = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--workers") == 0 && i + 1 < argc) {
            o.workers = strtoull(argv[++i], NULL, 10);
            if (o.workers < 10 || o.workers > KN_WORKERS_MAX) goto usage;
        } else if (strcmp(argv[i], "--compare") == 0 && i + 1 < argc) {
            o.compare = argv[++i];
        } else if (strcmp(argv[i], "--digests") == 0) {
            o.digests = true;
        } else if (strcmp(argv[i], "--sick") == 0) {
            o.sick = true;
        } else if (strcmp(argv[i], "--hostile") == 0) {
            o.hostile = true;
        } else if (strcmp(argv[i], "--once") == 0) {
            o.once = true;
#ifdef KILN_PLANTED
        } else if (strcmp(argv[i], "--plant") == 0 && i + 1 < argc) {
            if (!plant(argv[++i])) goto usage;
        } else if (strcmp(argv[i], "--planted") == 0) {
            list_planted();
            return 0;
#endif
        } else if (strcmp(argv[i], "--trace") == 0) {
            o.trace = true;
        } else {
            goto usage;
        }
    }
    if (o.trace) setvbuf(stdout, NULL, _IOLBF, 0);
    return o.compare ? compare(&o) : play_all(&o);
usage:
    fprintf(
        stderr,
        "usage: sim-farm [--sick | --hostile] [--once] [--seeds A..B] [--steps N] [--workers N] [--trace | --digests]\n"
        "       sim-farm --compare FILE [--steps N] [--workers N]\n");
    return 1;
}
