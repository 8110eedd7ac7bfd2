/* Pictures that the coordinator has not acknowledged: the worker keeps their bytes until it knows that they
 * are durable. A queue in the order of rendering; those sent and not acknowledged are bounded by a window of
 * bytes, so that what lies in sockets stays small; the whole is bounded by whoever fills it (stages.h). After
 * a reconnect all are sent again: a picture that came twice is the same picture. The loop's thread; no
 * sockets and no clock here. */
#ifndef KILN_WORKER_UPLOADS_H
#define KILN_WORKER_UPLOADS_H

#include "base/map.h"
#include "worker/grant.h"

struct upload {
    struct upload *next, *prev;
    struct grant *grant; /* owns a reference */
    struct bytes *png;   /* owns a reference */
    uint32_t place;      /* of its task in the grant */
    uint32_t render_ms;
    kn_digest sha256, pixels_sha256;
    bool flat, sent;
    uint64_t sent_ms;
};

struct uploads {
    struct upload *first, *last; /* owns */
    struct upload *unsent;       /* the first not sent; all behind it are not sent either */
    struct kn_map *by_task;
    size_t count;
    uint64_t bytes, sent_bytes, window_bytes;
};

KN_MUST_USE int uploads_init(struct uploads *u, size_t count_max, uint64_t window_bytes);
void uploads_fini(struct uploads *u);
/* Takes up (from malloc) and its references on success. KN_EEXIST: that task's picture waits already;
 * KN_ENOMEM. */
KN_MUST_USE int uploads_add(struct uploads *u, struct upload *up);
/* The next to send if the window allows it (one may always be on its way), else NULL. */
struct upload *uploads_next(const struct uploads *u);
void uploads_sent(struct uploads *u, struct upload *up,
                  uint64_t now_ms); /* the one that uploads_next() gave */
/* All that were sent must be sent again. */
void uploads_again(struct uploads *u);
/* Forgets that task's picture; returns the bytes that were kept for it, 0 when there was none. */
size_t uploads_acknowledged(struct uploads *u, const kn_id batch, uint32_t task);
/* When the one that has waited longest for its acknowledgement was sent; UINT64_MAX: none has been sent. */
uint64_t uploads_oldest_ms(const struct uploads *u);
void upload_free(struct upload *up); /* with its references; NULL is fine */

#endif
