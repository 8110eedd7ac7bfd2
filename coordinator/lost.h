/* Lost and damaged objects. An object is the farm's only copy of a picture: a retry looks at those of its
 * batch, and what is not there any more, or is not what its name says, is rendered again. */
#ifndef KILN_COORDINATOR_LOST_H
#define KILN_COORDINATOR_LOST_H

#include "coordinator/server.h"

/* Carries out a retry: looks at the objects of the batch's done tasks, voids the records of those that are
 * lost, hands both these and the failed tasks to the core, and answers the client then. Asked again
 * meanwhile, it answers all who asked. */
void lost_retry(struct server *s, struct reply_to *to, const kn_id batch);
/* The object of that task's record was found lost or damaged: the record is void, and the task is rendered
 * again. Nothing happens if the task names another object by now. */
void lost_void(struct server *s, const kn_id batch, uint32_t task, const uint8_t sha256[KN_SHA256_BYTES]);
/* A client found that task's picture bad. It is looked at here, and voided if it is so; the answer comes then: 0, or
 * KN_ESTATE: it is as it should be. */
void lost_report(struct server *s, struct reply_to *to, const struct kn_picture_report *p);
/* Somebody came for an object that is lost: counted, and logged with the others at the next sweep. */
void lost_note(struct server *s, const uint8_t sha256[KN_SHA256_BYTES], int code);
void lost_sweep(struct server *s);
void lost_fini(struct server *s);

#endif
