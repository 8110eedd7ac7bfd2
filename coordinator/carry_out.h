/* Between events and the core: server_step() feeds one event and carries out the effects that come of it: it
 * writes to the store, grants and revokes at workers, answers clients. The outcome (the store's
 * answer, a connection that is gone) is fed back as another event, one after the other, never inside a
 * step. */
#ifndef KILN_COORDINATOR_CARRY_OUT_H
#define KILN_COORDINATOR_CARRY_OUT_H

#include "coordinator/server.h"

/* The core's answer to the event. While effects are carried out, an event is queued instead, and 0. */
int server_step(struct server *s, const struct farm_event *ev);
void server_forget_events(struct server *s); /* those that are queued still */

/* Sends to a worker's connection; a connection that is gone becomes an event. */
/* 0, KN_EGONE: not connected any more, and the core knows; others: not sent, and logged. */
int server_tell(struct server *s, uint64_t conn, const struct kn_msg *m);
/* Acknowledges a picture, on the worker's control connection or on the data connection that it came on. */
void server_ack(struct server *s, uint64_t conn, const kn_id batch, uint32_t task, int code);

/* Answers code and text (static) once the store has the batch's state as people asked for it: 0, or a refusal that
 * speaks of a state that may not be durable yet. Who asks the same again waits for the same write. */
void server_await_state(struct server *s, struct kept_batch *b, const struct reply_to *to, int code,
                        const char *text);
/* Has the store forget a batch in BATCH_REMOVING, and then its pictures; its waiters are answered. Asked again by
 * the sweep where the store took nothing. */
void server_remove(struct server *s, struct kept_batch *b);

/* Pauses the data socket while the store or the disk are behind: pictures stay with the workers then. */
void server_flow(struct server *s);
/* True while there has been no room for so long that pictures are not waited for, but refused: not now. */
bool server_refuses(const struct server *s);

#endif
