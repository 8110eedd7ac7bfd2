/* Logs; the contract is log.h. A line is composed on the stack and leaves in one write(2), so that the lines
 * of several threads (and of several processes on one file opened with O_APPEND) never mix. Control characters
 * in the text are spelled out (kn_utf8_visible): a peer's string can neither forge a line nor play with a
 * terminal. */
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
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

/* ---- the lines of a kind, and of a kind and a peer */

#define LOG_SLOTS 512 /* kinds and peers that are counted at once; a newer one takes an older one's place */
#define LOG_KIND_BYTES 40

static struct log_slot { /* guarded by log_lock */
    const char *fmt;     /* of the call: the same call, the same kind; NULL: free */
    uint64_t peer;
    uint64_t since_ms; /* of its window */
    uint64_t lines, left_out;
    enum kn_log_level level;
} log_slots[LOG_SLOTS];
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t log_flushed_ms;

static void write_line(enum kn_log_level level, const char *fmt, va_list ap);

static void write_text(enum kn_log_level level, const char *fmt, ...) KN_PRINTF(2, 3);
static void write_text(enum kn_log_level level, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    write_line(level, fmt, ap);
    va_end(ap);
}

/* 12345 as "12,345". */
static const char *grouped(uint64_t n, char out[32]) {
    char plain[24];
    size_t len = (size_t)snprintf(plain, sizeof plain, "%llu", (unsigned long long)n), at = 0;
    for (size_t i = 0; i < len; i++) {
        if (i && (len - i) % 3 == 0) out[at++] = ',';
        out[at++] = plain[i];
    }
    out[at] = '\0';
    return out;
}

/* Tells what a slot left out, and begins its next window. */
static void slot_tell(struct log_slot *x, uint64_t now) {
    char number[32], kind[LOG_KIND_BYTES];
    if (x->fmt && x->left_out) {
        snprintf(kind, sizeof kind, "%.*s", (int)strcspn(x->fmt, " "), x->fmt);
        write_text(x->level, "log_left_out kind=%s peer=%016llx and %s more", kind,
                   (unsigned long long)x->peer, grouped(x->left_out, number));
    }
    x->since_ms = now;
    x->lines = x->left_out = 0;
}

/* True when one more line of this kind, and of this peer where one is named, may be written. */
static bool slot_takes(const char *fmt, uint64_t peer, uint64_t most, enum kn_log_level level, uint64_t now) {
    uint64_t h = ((uint64_t)(uintptr_t)fmt ^ peer * 0x9e3779b97f4a7c15u) * 0xff51afd7ed558ccdu;
    struct log_slot *x = &log_slots[(h >> 32) % LOG_SLOTS];
    bool same = x->fmt == fmt && x->peer == peer;
    if (!same || now - x->since_ms >= LOG_WINDOW_MS) slot_tell(x, now);
    x->fmt = fmt;
    x->peer = peer;
    x->level = level;
    if (x->lines < most) {
        x->lines++;
        return true;
    }
    x->left_out++;
    return false;
}

static void flush_slots(uint64_t now, bool all) {
    log_flushed_ms = now;
    for (size_t i = 0; i < LOG_SLOTS; i++)
        if (log_slots[i].left_out && (all || now - log_slots[i].since_ms >= LOG_WINDOW_MS))
            slot_tell(&log_slots[i], now);
}

void kn_log_flush(bool all) {
    if (pthread_mutex_trylock(&log_lock) != 0) return;
    flush_slots(kn_clock_ms(), all);
    pthread_mutex_unlock(&log_lock);
}

/* ---- a file that grows too large */

#define LOG_LOOK_LINES 256 /* how often its size is looked at */

static long long log_bytes_max; /* 0: it is not looked at */

void kn_log_rotate(long long bytes_max) {
    log_bytes_max = bytes_max;
}

static void rotate(void) {
    char path[4096], old[4096 + 2];
    struct stat st;
    if (fstat(STDERR_FILENO, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size < log_bytes_max) return;
    int flags = fcntl(STDERR_FILENO, F_GETFL);
    if (flags < 0 || !(flags & O_APPEND)) return;
    ssize_t n = readlink("/proc/self/fd/2", path, sizeof path - 1);
    if (n <= 0) return;
    path[n] = '\0';
    snprintf(old, sizeof old, "%s.1", path);
    if (n > 2 && strcmp(path + n - 2, ".1") == 0) /* another process of the same log has moved it */
        path[n - 2] = '\0';
    else if (rename(path, old) != 0)
        return;
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, st.st_mode & 0777);
    if (fd < 0) return;
    bool out_too = false; /* a daemon's standard output is the same file */
    struct stat so;
    if (fstat(STDOUT_FILENO, &so) == 0) out_too = so.st_dev == st.st_dev && so.st_ino == st.st_ino;
    dup2(fd, STDERR_FILENO);
    if (out_too) dup2(fd, STDOUT_FILENO);
    close(fd);
}

/* ---- lines */

void kn_log_line(enum kn_log_level level, uint64_t peer, const char *fmt, ...) {
    static unsigned lines; /* guarded by log_lock */
    int saved = errno;     /* a log line between a failed call and the look at errno must not change it */
    bool shown = true;
    /* A lock that is held elsewhere (or was, in the parent of a fork) is not waited for: the line is written. */
    if (level != KN_LOG_DEBUG && pthread_mutex_trylock(&log_lock) == 0) {
        uint64_t now = kn_clock_ms();
        shown = (!peer || slot_takes(fmt, peer, LOG_PEER_MAX, level, now)) &&
                slot_takes(fmt, 0, LOG_KIND_MAX, level, now);
        if (now - log_flushed_ms >= LOG_WINDOW_MS) flush_slots(now, false);
        if (log_bytes_max && lines++ % LOG_LOOK_LINES == 0) rotate();
        pthread_mutex_unlock(&log_lock);
    }
    va_list ap;
    va_start(ap, fmt);
    if (shown) write_line(level, fmt, ap);
    va_end(ap);
    errno = saved;
}

static void write_line(enum kn_log_level level, const char *fmt, va_list ap) {
    struct timespec ts;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);

    char line[LOG_LINE_MAX];
    size_t len = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &tm);
    len += (size_t)snprintf(line + len, sizeof line - len, ".%03dZ %-5s %s: ", (int)(ts.tv_nsec / 1000000),
                            log_names[level], log_process);
    size_t text = len;
    int n = vsnprintf(line + len, sizeof line - len, fmt, ap);
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
}
