/* The bound on connections. ZeroMQ has none of its own: it accepts until the process is out of file descriptors, and
 * then ends it. So the one call with which it accepts, accept4(), is defined here, in every program that is linked with
 * this library; without kn_gate_set() it does what libc's does.
 *
 *     0 ........................ strangers_at .............. descriptors_max ........ limit of the process
 *     everybody is let in        each newcomer puts out the   newcomers are closed     files, the store
 *                                oldest that has not spoken
 *
 * The kernel gives the lowest free number, so a number tells how many descriptors are open. Who has sent more than a
 * greeting has spoken: a connection that says nothing takes no room from one that does. */
#ifndef KN_PROTO_GATE_H
#define KN_PROTO_GATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kn_gate_plan {
    size_t descriptors_max, strangers_at; /* see above */
    size_t workers;                       /* that can be connected at once, beside commands */
};
/* How a process that may have so many files open shares them out. */
struct kn_gate_plan kn_gate_plan(size_t files_max);

/* From now on; once a process, before it listens. KN_ENOMEM. */
int kn_gate_set(const struct kn_gate_plan *plan);

struct kn_gate_counts {
    uint64_t put_out, refused; /* connections, since the start */
};
struct kn_gate_counts kn_gate_counts(void);

#endif
