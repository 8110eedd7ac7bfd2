/* Logs: one line an event on standard error or a file; event first, ids always: `lease_expired batch=7
 * shard=12`. No secrets; prompts only at debug. Thread safe (one write(2) a line). Libc only. */
#ifndef KN_BASE_LOG_H
#define KN_BASE_LOG_H

#include "base/err.h"

enum kn_log_level { KN_LOG_ERROR, KN_LOG_WARN, KN_LOG_INFO, KN_LOG_DEBUG };

/* Process name printed on each line ("coordinator"); level from then on. Call once in main(), before threads.
 */
void kn_log_init(const char *process, enum kn_log_level level);
/* "error", "warn", "info", "debug" -> level; KN_EINVAL otherwise. */
KN_MUST_USE int kn_log_level_parse(const char *text, enum kn_log_level *out);
extern enum kn_log_level kn_log_level_now;
void kn_log_line(enum kn_log_level level, const char *fmt, ...) KN_PRINTF(2, 3);

/* The level is tested before the arguments are computed. */
#define kn_log(level, ...)                                                                                   \
    do {                                                                                                     \
        if ((level) <= kn_log_level_now) kn_log_line((level), __VA_ARGS__);                                  \
    } while (0)
#define kn_error(...) kn_log(KN_LOG_ERROR, __VA_ARGS__)
#define kn_warn(...) kn_log(KN_LOG_WARN, __VA_ARGS__)
#define kn_info(...) kn_log(KN_LOG_INFO, __VA_ARGS__)
#define kn_debug(...) kn_log(KN_LOG_DEBUG, __VA_ARGS__)

#endif
