/* Why something does not go on, in words for people, with what to do: the core says what it is (enum kn_wait),
 * and the store and the disk are looked at here. */
#ifndef KILN_COORDINATOR_WAITS_H
#define KILN_COORDINATOR_WAITS_H

#include "coordinator/server.h"

/* The store has not answered for some seconds. out: the words, "" while it answers. Gives how long, 0: it
 * answers. */
uint64_t waits_store(const struct server *s, char out[KN_WAIT_TEXT_MAX]);
/* The disk refused the last picture that came. out: the words. False: it takes pictures. */
bool waits_disk(const struct server *s, char out[KN_WAIT_TEXT_MAX]);
/* Why nothing of this batch is rendered. KN_WAIT_NONE: something is, or it has ended; out is "" then. */
enum kn_wait waits_batch(struct server *s, const struct farm_batch_view *v, char out[KN_WAIT_TEXT_MAX]);

/* Why this worker cannot render something, in words; lacks: see farm.h. */
#define UNFIT_TEXT_MAX (KN_REASON_MAX + KN_NAME_MAX * 2 + 64)
void waits_unfit(struct server *s, const char *worker, uint64_t lacks, char *out, size_t out_max);

#endif
