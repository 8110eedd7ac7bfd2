/* The bound on connections. ZeroMQ has none of its own: it accepts until the process is out of file descriptors, and
 * then ends it. So the one call with which it accepts, accept4(), is defined here, in every program that is linked with
 * this library; without kn_gate_set() it does what libc's does.
 *
 *     0 ........................ strangers_at .............. descriptors_max ........ limit of the process
 *     everybody is let in        each newcomer puts out the   newcomers are closed     files, the store
 *                                oldest that has not spoken,
 *                                in the upper half two
 *
 * The kernel gives the lowest free number, so a number tells how many descriptors are open. Where a guard asks for keys,
 * whoever has said something under a known key stays, and who has not within STRANGER_MS is put out, however much it has
 * sent. Elsewhere, who has sent more than a greeting has spoken. Either way, a connection that says nothing takes no room
 * from one that does. */
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

/* For a process whose sockets ask for keys. */
#define STRANGER_MS 10000
void kn_gate_guarded(void);
/* A message came over the connection of that descriptor from somebody who is known: it stays. */
void kn_gate_keep(int fd);
/* …from somebody who is not. False: it was the second one, and the connection is ended. */
bool kn_gate_once(int fd);
void kn_gate_sweep(void); /* ends the connections of those that stayed strangers: every second or so */

struct kn_gate_counts {
    uint64_t put_out, refused; /* connections, since the start */
};
struct kn_gate_counts kn_gate_counts(void);

#endif
