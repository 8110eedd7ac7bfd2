/* Logs; the contract is log.h. A line is composed on the stack and leaves in one write(2), so that the lines
 * of several threads (and of several processes on one file opened with O_APPEND) never mix. Control characters
 * in the text are spelled out (kn_utf8_visible): a peer's string can neither forge a line nor play with a
 * terminal. */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/utf8.h"

#define LOG_LINE_MAX 2048

enum kn_log_level kn_log_level_now = KN_LOG_INFO;
static char log_process[32] = "kiln";

static const char *const log_names[] = {"error", "warn", "info", "debug"};

void kn_log_init(const char *process, enum kn_log_level level) {
    snprintf(log_process, sizeof log_process, "%s", process);
    kn_log_level_now = level;
}

int kn_log_level_parse(const char *text, enum kn_log_level *out) {
    for (size_t i = 0; i < sizeof log_names / sizeof *log_names; i++) {
        if (strcmp(text, log_names[i]) == 0) {
            *out = (enum kn_log_level)i;
            return KN_OK;
        }
    }
    return KN_EINVAL;
}

void kn_log_line(enum kn_log_level level, const char *fmt, ...) {
    int saved = errno; /* a log line between a failed call and the look at errno must not change it */
    struct timespec ts;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);

    char line[LOG_LINE_MAX];
    size_t len = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &tm);
    len += (size_t)snprintf(line + len, sizeof line - len, ".%03dZ %-5s %s: ", (int)(ts.tv_nsec / 1000000),
                            log_names[level], log_process);
    size_t text = len;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(line + len, sizeof line - len, fmt, ap);
    va_end(ap);
    if (n > 0) len += (size_t)n;
    if (len > sizeof line - 2) { /* too long: say so where it ends */
        len = sizeof line - 2;
        memcpy(line + len - 3, "...", 3);
    }
    char shown[LOG_LINE_MAX];
    line[len] = '\0';
    size_t room = sizeof line - 1 - text;
    len = text + kn_utf8_visible(line + text, false, shown, room);
    memcpy(line + text, shown, len - text);
    line[len++] = '\n';
    size_t done = 0;
    while (done < len) {
        ssize_t put = write(STDERR_FILENO, line + done, len - done);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) break; /* there is nowhere to complain to */
        done += (size_t)put;
    }
    errno = saved;
}
