/* The folder of objects. Only this file changes anything in it:
 *
 *     DIR/ab/<64 hex>.png               an object: immutable, named by its SHA-256
 *     DIR/incoming/TERM-SERIAL          one that is being written
 *     DIR/trash/ab/TERM-SERIAL-<64 hex> one that was moved out of the way, and is deleted later
 *     DIR/damaged/<64 hex>-TERM-SERIAL  what lay under an object's name and was not the object: it is kept
 *
 * No file system checks a term, and a process can be stopped between a check and the call that it was for. So
 * each call here is harmless however late it comes. A name with TERM and SERIAL is never given twice. Bytes
 * come to lie under an object's name only when they are those of the digest. No object is ever deleted: it is
 * moved to the trash, and whoever misses it finds it there and moves it back. The caller knows which files of
 * the trash may be deleted (trash.h).
 *
 * Any thread; every call may block. */
#ifndef KILN_COORDINATOR_OBJECTS_H
#define KILN_COORDINATOR_OBJECTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "base/fs.h"
#include "base/hash.h"

#define OBJECTS_NAME_MAX 128 /* of a file in incoming/, trash/ab/ or damaged/ */
#define OBJECTS_FOLDERS 256  /* by a digest's first byte */

struct objects;

/* Makes the folders below dir ("DIR/objects"). `term` is that of this process alone. */
KN_MUST_USE int objects_open(const char *dir, uint64_t term, struct objects **out, struct kn_err *err);
void objects_close(struct objects *o); /* NULL is fine */

/* out: the path of an object below dir. */
void objects_path(const char *dir, const uint8_t sha256[KN_SHA256_BYTES], char out[KN_PATH_MAX]);

/* ---- an object comes */

/* True if the object is there with exactly these bytes. */
bool objects_has(struct objects *o, const uint8_t sha256[KN_SHA256_BYTES], const void *data, size_t len);
/* Writes them to a new file in incoming/, whose name is `name`. On failure nothing is left, errno says why
 * and *what at which call. */
KN_MUST_USE int objects_write(struct objects *o, const void *data, size_t len, bool sync,
                              char name[OBJECTS_NAME_MAX], const char **what);
/* Gives that file the object's name. Damaged bytes that lie there are kept in damaged/. The file in incoming/
 * is gone in any case. */
KN_MUST_USE int objects_arrive(struct objects *o, const char *name, const uint8_t sha256[KN_SHA256_BYTES],
                               const void *data, size_t len);
void objects_drop(struct objects *o, const char *name); /* a file in incoming/, of this process */
KN_MUST_USE int objects_sync_folder(struct objects *o, const uint8_t sha256[KN_SHA256_BYTES]);
KN_MUST_USE int objects_sync_root(struct objects *o);
KN_MUST_USE int objects_sync_all(struct objects *o); /* syncfs */

/* ---- an object is looked for, in the trash too when it is missed; *restored: it was there */

/* Reads it whole and compares it with its digest. 0: *data is the caller's (free). KN_ENOENT; KN_ECORRUPT: it
 * is damaged; KN_EIO, KN_ENOMEM: it cannot be read now. */
KN_MUST_USE int objects_read(struct objects *o, const uint8_t sha256[KN_SHA256_BYTES], void **data,
                             size_t *len, bool *restored);
/* The same for being there only: KN_ECORRUPT is an empty file or none at all. */
KN_MUST_USE int objects_look(struct objects *o, const uint8_t sha256[KN_SHA256_BYTES], bool *restored);

/* ---- the trash */

/* Moves an object there; `name`: the file's name in trash/ab/. KN_ENOENT: it is not there (any more). */
KN_MUST_USE int objects_trash(struct objects *o, const uint8_t sha256[KN_SHA256_BYTES],
                              char name[OBJECTS_NAME_MAX]);
/* Moves an intact copy back, unless the object is there. KN_ENOENT: the trash has none. */
KN_MUST_USE int objects_restore(struct objects *o, const uint8_t sha256[KN_SHA256_BYTES]);
/* Deletes a file of the trash. */
KN_MUST_USE int objects_delete(struct objects *o, const uint8_t sha256[KN_SHA256_BYTES], const char *name);

/* ---- all of them */

struct objects_entry {
    uint8_t sha256[KN_SHA256_BYTES];
    char name[OBJECTS_NAME_MAX]; /* in the trash; "" for an object */
    uint64_t age_ms;             /* of an object: since it was written; in the trash: since it came there */
    uint64_t bytes;
};
/* Calls `each` for the objects, or the trash, of one folder (the first byte of their digests). Files that
 * kiln has not named are left alone and counted in *others (may be NULL). False of `each` ends it. */
void objects_each(struct objects *o, unsigned folder, bool trash,
                  bool (*each)(void *ctx, const struct objects_entry *e), void *ctx, size_t *others);
/* When the trash of a folder was changed last: ns since 1970, 0 when it cannot be told. */
uint64_t objects_trash_changed(struct objects *o, unsigned folder);
/* Deletes what coordinators of earlier terms were writing when they ended; returns how many files it was. */
size_t objects_remove_strays(struct objects *o);

/* For tests, which stop the process there: called right before each system call that changes the folder, with
 * its name: "create", "arrive", "aside", "trash", "restore", "delete", "stray". NULL: nothing is called. */
extern void (*objects_switch)(const char *call);

#endif
