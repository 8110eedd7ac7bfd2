/* Logs: one line an event on standard error or a file; event first, ids always: `lease_expired batch=7
 * shard=12`. No secrets; prompts only at debug. Thread safe (one write(2) a line). Libc only.
 *
 * Neither a peer nor a fault that repeats can fill a disk. Of each kind (the text of the call) LOG_KIND_MAX lines are
 * written in LOG_WINDOW_MS, and LOG_PEER_MAX of one kind and peer; the others are counted, and a line "log_left_out
 * kind=… and 12,345 more" tells of them. A log file that grows over a bound is moved to NAME.1 (kn_log_rotate). */
#ifndef KN_BASE_LOG_H
#define KN_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

enum kn_log_level { KN_LOG_ERROR, KN_LOG_WARN, KN_LOG_INFO, KN_LOG_DEBUG };

/* Process name printed on each line ("coordinator"); level from then on. Call once in main(), before threads.
 */
void kn_log_init(const char *process, enum kn_log_level level);
/* "error", "warn", "info", "debug" -> level; KN_EINVAL otherwise. */
KN_MUST_USE int kn_log_level_parse(const char *text, enum kn_log_level *out);
extern enum kn_log_level kn_log_level_now;
/* peer: whose doing the line is, any number; 0: nobody's. */
void kn_log_line(enum kn_log_level level, uint64_t peer, const char *fmt, ...) KN_PRINTF(3, 4);

#define LOG_WINDOW_MS 10000
#define LOG_KIND_MAX 2000
#define LOG_PEER_MAX 20
#define LOG_FILE_BYTES_MAX (32ll << 20) /* of a log file; the one before it is kept too */
/* Tells of what was left out in windows that are over; with `all` also in those that are not, for a program's end. To be
 * called now and then. */
void kn_log_flush(bool all);
/* From now on standard error, where it is a file that was opened to append, is moved to NAME.1 when it has so many bytes,
 * and begun anew. 0: never, as at first. */
void kn_log_rotate(long long bytes_max);

/* The level is tested before the arguments are computed. */
#define kn_log_of(level, peer, ...)                                                                          \
    do {                                                                                                     \
        if ((level) <= kn_log_level_now) kn_log_line((level), (peer), __VA_ARGS__);                          \
    } while (0)
#define kn_log(level, ...) kn_log_of((level), 0, __VA_ARGS__)
#define kn_warn_of(peer, ...) kn_log_of(KN_LOG_WARN, (peer), __VA_ARGS__)
#define kn_error(...) kn_log(KN_LOG_ERROR, __VA_ARGS__)
#define kn_warn(...) kn_log(KN_LOG_WARN, __VA_ARGS__)
#define kn_info(...) kn_log(KN_LOG_INFO, __VA_ARGS__)
#define kn_debug(...) kn_log(KN_LOG_DEBUG, __VA_ARGS__)

#endif
