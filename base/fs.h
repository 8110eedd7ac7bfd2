/* Files, done durably: whole reads with a maximum, atomic replacement, directories. Libc only. */
#ifndef KN_BASE_FS_H
#define KN_BASE_FS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include "base/buf.h"
#include "base/err.h"
#include "base/spill.h"

#define KN_PATH_MAX 4096

/* Opens a regular file for reading. A folder, a FIFO, a device or a socket is refused at once (KN_EIO), even
 * where opening or reading it would block or never end; a file over bytes_max is KN_ELIMIT. Everything that a
 * person names (a model, a LoRA, prompts, a config) is opened by this function or by kn_fs_read. The caller
 * closes *fd. bytes may be NULL; KN_ENOENT when there is no such file. */
KN_MUST_USE int kn_fs_open(const char *path, uint64_t bytes_max, int *fd, uint64_t *bytes,
                           struct kn_err *err);
/* The same as a stream for whom lines are read one by one; NULL: refused, err says why. */
KN_MUST_USE FILE *kn_fs_stream(const char *path, struct kn_err *err);
/* Appends the whole file to out (whose max bounds it). "-" is standard input, which may be anything; a path
 * is opened as kn_fs_open does. KN_ENOENT, KN_EIO, KN_ELIMIT. */
KN_MUST_USE int kn_fs_read(const char *path, struct kn_buf *out, struct kn_err *err);
/* The same of a file that may be long. */
KN_MUST_USE int kn_fs_read_long(const char *path, struct kn_spill *out, struct kn_err *err);
/* Writes PATH.tmp.XXXXXX beside path, renames over path. durable: fsync of file and directory. */
KN_MUST_USE int kn_fs_replace(const char *path, const void *data, size_t len, bool durable,
                              struct kn_err *err);
/* Deletes the PATH.tmp.XXXXXX that kn_fs_replace() left when its process was killed, if they are older than
 * that. Who calls it is the only one to write PATH. Returns how many they were. */
size_t kn_fs_remove_temps(const char *path, uint64_t older_ms);
/* Deletes the files (not folders) of a folder whose names begin with prefix. Returns how many they were. */
size_t kn_fs_remove_prefixed(const char *dir, const char *prefix);
/* mkdir -p, mode for those made. */
KN_MUST_USE int kn_fs_mkdirs(const char *path, unsigned mode, struct kn_err *err);
KN_MUST_USE int kn_fs_sync_dir(const char *path, struct kn_err *err);
/* out = a "/" b; KN_ELIMIT when it does not fit. */
KN_MUST_USE int kn_fs_join(char *out, size_t out_max, const char *a, const char *b);
bool kn_fs_exists(const char *path);
/* The most files that this process may have open at once. raise: the limit is first set as high as it may be. */
size_t kn_fs_files_max(bool raise);
/* Opens /dev/null as standard input, output or error where they are closed, so that no file or socket of ours
 * takes their number (libuv aborts on it, and a message would end up in a file). First thing in main(). */
void kn_fs_standard(void);

#endif
