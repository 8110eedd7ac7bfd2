/* Faults on purpose, to show that the simulator finds them (tests/sim/planted.sh): each is a place where the right
 * code does one thing and the planted fault another. Only the simulator's own copy of the core is built with
 * KILN_PLANTED; everywhere else KN_PLANTED is 0, and nothing of a fault is compiled in. */
#ifndef KILN_BASE_PLANTED_H
#define KILN_BASE_PLANTED_H

/* name of the fault, what goes wrong */
/* A row a line. */
/* clang-format off */
#define KN_PLANTED_TABLE(row) \
    row(NO_FAULT, "none") \
    /* in the core */ \
    row(ACK_BEFORE_COMMIT, "a worker is told that its picture is kept before the store has said so") \
    row(CHARGE_TWICE, "a failure charges its task twice") \
    row(CHARGE_UNACQUITTED, "charges count though nobody knows whether the worker is well") \
    row(SICK_BLAMES_TASK, "what a worker charged is not taken back when it is found to be sick") \
    row(LOST_RETRACT, "a shard is taken back, and its worker is not told") \
    row(RESEND_LOST, "what the store refused is never asked for again") \
    row(TERM_NOT_HEEDED, "a coordinator that lost the lead goes on") \
    row(VOID_LOST_AT_END, "a batch read back as done with an open task does not say that it is active") \
    row(RETRY_OVERTAKEN, "a failure that a retry has overtaken counts") \
    row(RETRY_FORGOTTEN, "a retry that the store refused is asked for again as a mere state") \
    row(WISH_DROPPED, "a wish that comes while another is on its way is not written") \
    row(SILENCE_IGNORED, "a worker that is silent is waited for") \
    row(PIN_IGNORED, "a result of another class than the one asked for is taken") \
    row(DEATH_BLAMES_ALL, "a death charges whatever the worker held, begun or not") \
    /* in the simulator's own shell around the core: collector, store, clients */ \
    row(ACK_BEFORE_FSYNC, "a picture counts as there before its file is synced") \
    row(NO_DIRECTORY_FSYNC, "a picture counts as there before its directory is synced") \
    row(ANSWER_BEFORE_DURABLE, "the store answers before it has synced") \
    row(TERM_NOT_CHECKED, "the store takes a write of an older term") \
    row(DELETION_WITHOUT_TERM, "who lost the lead goes on deleting objects, without a look at who names them") \
    row(ADMISSION_AFTER_COMMIT, "a batch is made durable before it is known that the core can take it")
/* clang-format on */

#define KN_PLANTED_NAME(name, what) PLANTED_##name,
enum kn_planted_fault { KN_PLANTED_TABLE(KN_PLANTED_NAME) };
#undef KN_PLANTED_NAME

#ifdef KILN_PLANTED
extern enum kn_planted_fault kn_planted; /* the one that is there */
#define KN_PLANTED(name) (kn_planted == PLANTED_##name)
#else
#define KN_PLANTED(name) 0
#endif

#endif
