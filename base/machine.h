/* The share of its machine that this process may use: cores, NUMA nodes and memory, as the kernel says in /proc and /sys.
 *
 * A limit may stand anywhere on the way from the process's control group to the root, and the tightest one counts.
 * Both generations of control groups are read (v1: one tree a controller, v2: one tree), as well as the way that a
 * container sees them, whose own group is the root of what is mounted. A file that cannot be read sets no limit.
 * Any thread. */
#ifndef KN_BASE_MACHINE_H
#define KN_BASE_MACHINE_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

#define KN_NODES_MAX 64

struct kn_machine {
    cpu_set_t cpus; /* the affinity mask, a cpuset included */
    int cores;      /* how many of them can be busy at a time: fewer where the control group has a quota */
    /* The NUMA nodes that have one of the cpus, with those cpus. A machine that tells of no nodes is one node. */
    int nodes;
    struct kn_node {
        int number;
        int cores;
        cpu_set_t cpus;
    } node[KN_NODES_MAX];
    uint64_t memory_total; /* bytes: the machine's, or the control group's limit where that is less */
    uint64_t memory_free;  /* that can be had now, what the page cache would give up included, swap not */
    bool memory_limited;   /* a control group's limit leaves less than the machine has free */
    /* How many processes of this control group (of the machine, where the group does not count them) the kernel
     * has killed for want of memory so far. */
    uint64_t oom_kills;
};

/* root: "" for this machine; tests give a folder that holds a /proc and a /sys of theirs. */
void kn_machine_read(const char *root, struct kn_machine *out);
/* "14.6 GB", "380 MB": for people, in powers of ten as sellers of memory and the kernel's limits have it. */
const char *kn_bytes_text(uint64_t bytes, char out[16]);

#endif
