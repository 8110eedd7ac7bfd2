/* Objects that nobody names: they are moved to the trash, and deleted there an hour later.
 *
 * Three kinds are known or found. A removed batch leaves a tombstone in the store, its records, and is not
 * buried before its objects are in the trash, by this coordinator or by the next. An orphan came and was not
 * committed: somebody was faster, or the batch was over. The others are found by the sweep, at the start and
 * then daily: what lies in the folder, came an hour ago or more and is named by nothing.
 *
 * What goes is decided in rounds, one at a time:
 *
 *     list       candidates: a part of a tombstone, the orphans, some folders of the trash or of the objects
 *     look       go through the records of all batches, a few thousand a turn; what one names is none any more
 *     confirm    ask the store: this coordinator led then
 *     act        on a thread: move to the trash, or delete from it and move back what is named
 *
 * So what is deleted lay in the trash while this coordinator led and nothing named it. Whoever commits that
 * picture later has made sure of an object of its own before (collect_put()), which can only have come to the
 * trash under another name. That is why a deletion does no harm however late it comes; a move does none since
 * whoever misses an object looks in the trash (objects.h). A look behind each commit, and each round over the
 * trash, do so unasked.
 *
 * The loop's thread. */
#ifndef KILN_COORDINATOR_TRASH_H
#define KILN_COORDINATOR_TRASH_H

#include "coordinator/server.h"

/* After the collector. */
KN_MUST_USE int trash_init(struct server *s);
void trash_close(struct server *s); /* before the collector's end; nothing begins any more */
void trash_fini(struct server *s);  /* when the loop has run out */

/* An object that nobody names, as far as is known now. */
void trash_orphan(struct server *s, const uint8_t sha256[KN_SHA256_BYTES]);
/* A removed batch's records (packed, some all zero; malloc), whose tombstone is in the store. Takes them;
 * KN_ENOMEM: frees them; the next coordinator sees to their objects. `now`: delete the objects at once. */
int trash_tomb(struct server *s, const kn_id id, bool now, uint8_t (*records)[STORE_RECORD_BYTES],
               size_t count);
/* The same while reading back: copied, in parts. */
KN_MUST_USE int trash_read_tomb(struct server *s, const kn_id id, bool now,
                                const uint8_t (*records)[STORE_RECORD_BYTES], size_t count);

/* A task is about to name it, when its picture has been kept or when the store has been asked. */
void trash_named(struct server *s, const uint8_t sha256[KN_SHA256_BYTES]);
/* A task names it from now on: the object is looked for soon, and moved back if it is in the trash. */
void trash_committed(struct server *s, const uint8_t sha256[KN_SHA256_BYTES]);

void trash_tick(struct server *s);  /* often */
void trash_sweep(struct server *s); /* every ten seconds */

/* A person asks for a sweep now; the client hears what it did. Asked again, who asked last is answered. */
void trash_repair(struct server *s, const struct reply_to *to);

#endif
