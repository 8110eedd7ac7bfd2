/* Files, done durably: whole reads with a maximum, atomic replacement, directories. Libc only. */
#ifndef KN_BASE_FS_H
#define KN_BASE_FS_H

#include <stdbool.h>
#include <stddef.h>
#include "base/buf.h"
#include "base/err.h"

#define KN_PATH_MAX 4096

/* Appends the whole file to out (whose max bounds it). "-" is standard input. KN_ENOENT, KN_EIO, KN_ELIMIT.
 */
KN_MUST_USE int kn_fs_read(const char *path, struct kn_buf *out, struct kn_err *err);
/* Writes PATH.tmp.XXXXXX beside path, renames over path. durable: fsync of file and directory. */
KN_MUST_USE int kn_fs_replace(const char *path, const void *data, size_t len, bool durable,
                              struct kn_err *err);
/* mkdir -p, mode for those made. */
KN_MUST_USE int kn_fs_mkdirs(const char *path, unsigned mode, struct kn_err *err);
KN_MUST_USE int kn_fs_sync_dir(const char *path, struct kn_err *err);
/* out = a "/" b; KN_ELIMIT when it does not fit. */
KN_MUST_USE int kn_fs_join(char *out, size_t out_max, const char *a, const char *b);
bool kn_fs_exists(const char *path);
/* Opens /dev/null as standard input, output or error where they are closed, so that no file or socket of ours
 * takes their number (libuv aborts on it, and a message would end up in a file). First thing in main(). */
void kn_fs_standard(void);

#endif
