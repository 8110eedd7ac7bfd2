/* Image bytes become durable files, each named by its SHA-256 (objects.h), and are read again.
 *
 * collect_put() takes bytes; on a thread of libuv's pool their digest is checked and that they are the picture that
 * was asked for, they are written to incoming/, synced, renamed to their name, and the folder is synced; then `done` is called with 0. Whoever
 * comes late with the same bytes finds them there and changes nothing. Pictures that arrive while others are
 * being synced are worked off together, so that one sync serves many.
 *
 * An object that lies there damaged is not believed: when its bytes come again they take its place, and what
 * was there is kept aside.
 *
 * A file that lies in incoming/ belongs to nobody once its coordinator has ended: collect_create() removes
 * those of earlier terms. The loop's thread, but for the work itself. */
#ifndef KILN_COORDINATOR_COLLECT_H
#define KILN_COORDINATOR_COLLECT_H

#include <uv.h>
#include "base/err.h"
#include "base/fs.h"
#include "base/hash.h"
#include "base/picture.h"
#include "coordinator/objects.h"
#include "proto/wire.h"

struct collect;

/* code: 0; KN_ECORRUPT: not the bytes of that digest, or not such a picture; KN_EIO (a full disk …): nothing was kept. */
typedef void (*collect_done)(void *ctx, int code, const char *why);
/* code 0: data is the callee's (free), and these are the bytes of that digest; KN_ENOENT; KN_ECORRUPT: it is
 * damaged; KN_EIO, KN_ENOMEM: it cannot be read now. */
typedef void (*collect_got)(void *ctx, int code, void *data, size_t len);

/* Makes the folders below dir ("DIR/objects"), removes strays. `term` is this process' alone. */
KN_MUST_USE int collect_create(uv_loop_t *loop, const char *dir, uint64_t term, struct collect **out,
                               struct kn_err *err);
/* Work that runs is waited for; no callback is called any more. NULL is fine. */
void collect_destroy(struct collect *c);

/* Takes the blob on success (sets blob->data to NULL). It must be such a picture; `want` NULL: any bytes are taken.
 * KN_ENOMEM. */
KN_MUST_USE int collect_put(struct collect *c, const uint8_t sha256[KN_SHA256_BYTES], struct kn_blob *blob,
                            const struct kn_picture *want, collect_done done, void *ctx);
/* Looks whether objects are there, and with `whole` whether their bytes are theirs, and such a picture where `picture`
 * says so; fills in the codes, as collect_got has them. v (malloc) is taken on success; in `done` it is borrowed. KN_EAGAIN, KN_ENOMEM. */
struct collect_look {
    uint8_t sha256[KN_SHA256_BYTES];
    uint32_t tag; /* the caller's */
    int code;
    bool picture; /* it must be `want` */
    struct kn_picture want;
    bool restored; /* it was in the trash */
    size_t len;    /* of the bytes that were read */
};
typedef void (*collect_looked)(void *ctx, const struct collect_look *v, size_t count);
KN_MUST_USE int collect_look(struct collect *c, struct collect_look *v, size_t count, bool whole,
                             collect_looked done, void *ctx);
/* Reads an object. KN_EAGAIN: too many reads wait. */
KN_MUST_USE int collect_get(struct collect *c, const uint8_t sha256[KN_SHA256_BYTES], collect_got got,
                            void *ctx);

size_t collect_bytes(const struct collect *c); /* taken and not durable yet */
size_t collect_count(const struct collect *c);

/* Runs `worker` on a thread with the folder, then `worked` on the loop: `closed` when the collector was
 * destroyed meanwhile, and nothing else may be done then but to free ctx. KN_EAGAIN, KN_ENOMEM: neither is
 * called. */
typedef void (*collect_worker)(struct objects *o, void *ctx);
typedef void (*collect_worked)(void *ctx, bool closed);
KN_MUST_USE int collect_work(struct collect *c, collect_worker worker, collect_worked worked, void *ctx);

/* Who is told that an object was in the trash and has been moved back. */
typedef void (*collect_restored)(void *ctx, const uint8_t sha256[KN_SHA256_BYTES]);
void collect_on_restored(struct collect *c, collect_restored restored, void *ctx);

#endif
