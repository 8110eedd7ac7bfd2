/* Opening the store in Redis: the connection before the loop, version, settings, the lead.
 * See redis_parts.h. */
#include <hiredis/hiredis.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fs.h"
#include "base/log.h"
#include "coordinator/store/redis_parts.h"
#include "coordinator/store/redis_tls.h"

#define ANSWER_MS 60000 /* of the synchronous part */
#define START_MS 30000  /* for a Redis that is not there yet */
#define VERSION_MIN 7

redisReply *redis_ask(redisContext *c, const struct words *w) {
    return redisCommandArgv(c, w->count, (const char **)(uintptr_t)w->v, w->len);
}

redisReply *redis_ask_plain(redisContext *c, struct kn_err *err, int count, ...) {
    struct words w = {0};
    va_list ap;
    va_start(ap, count);
    for (int i = 0; i < count; i++) word(&w, va_arg(ap, const char *));
    va_end(ap);
    redisReply *r = redis_ask(c, &w);
    if (!r) {
        kn_err_set(err, KN_EIO, "Redis: %s: %s", w.v[0], c->errstr[0] ? c->errstr : "connection lost");
    } else if (r->type == REDIS_REPLY_ERROR) {
        bool password = strncmp(r->str, "NOAUTH", 6) == 0 || strncmp(r->str, "WRONGPASS", 9) == 0;
        kn_err_set(
            err,
            strncmp(r->str, "LOADING", 7) == 0     ? KN_EAGAIN
            : password                             ? KN_ECONFIG
            : strncmp(r->str, "WRONGTYPE", 9) == 0 ? KN_ECORRUPT
                                                   : KN_EIO,
            "Redis: %s: %s%s", w.v[0], r->str,
            password
                ? " It wants a password: redis://USER:PASSWORD@HOST in a file (chmod 600), and --redis @FILE"
                : "");
        freeReplyObject(r);
        r = NULL;
    }
    return r;
}

const struct redis_setting redis_settings[REDIS_SETTINGS] = {
    {"appendonly", "yes"},
    {"appendfsync", "always"},
    {"no-appendfsync-on-rewrite", "no"},
    {"maxmemory-policy", "noeviction"},
};

static int check_version(const redisReply *r, struct kn_err *err) {
    const char *v = r->type == REDIS_REPLY_STRING ? strstr(r->str, "redis_version:") : NULL;
    if (!v) return kn_err_set(err, KN_ECONFIG, "Redis does not tell its version");
    v += strlen("redis_version:");
    if (atoi(v) < VERSION_MIN)
        return kn_err_set(err, KN_ECONFIG, "Redis %.*s is too old: kiln needs %d.0 or newer",
                          (int)strcspn(v, "\r\n"), v, VERSION_MIN);
    return 0;
}

int redis_check_settings(const redisReply *r, const char *address, struct kn_err *err) {
    char fix[512] = "";
    size_t used = 0;
    if (r->type != REDIS_REPLY_ARRAY) return kn_err_set(err, KN_ECONFIG, "Redis does not tell its settings");
    for (size_t k = 0; k < REDIS_SETTINGS; k++) {
        const char *have = NULL;
        for (size_t i = 0; i + 1 < r->elements; i += 2)
            if (strcmp(r->element[i]->str, redis_settings[k].name) == 0) have = r->element[i + 1]->str;
        if (have && strcmp(have, redis_settings[k].want) == 0) continue;
        int n = snprintf(fix + used, sizeof fix - used, "%s%s %s (it is %s)", used ? ", " : "",
                         redis_settings[k].name, redis_settings[k].want, have ? have : "unknown");
        if (n > 0 && (size_t)n < sizeof fix - used) used += (size_t)n;
    }
    if (!used) return 0;
    return kn_err_set(
        err, KN_ECONFIG,
        "Redis at %s could lose what was accepted. Set in its configuration file, or with CONFIG SET: %s. "
        "Or start with --allow-volatile",
        address, fix);
}

static int check_redis(struct redis_store *s, struct kn_err *err) {
    redisReply *r = redis_ask_plain(s->sync, err, 2, "INFO", "server");
    if (!r) return err->code;
    int rc = check_version(r, err);
    freeReplyObject(r);
    if (rc != 0 || s->opt.allow_volatile) return rc;
    r = redis_ask_plain(s->sync, err, 6, "CONFIG", "GET", redis_settings[0].name, redis_settings[1].name,
                        redis_settings[2].name, redis_settings[3].name);
    if (!r) {
        if (err->code == KN_EIO)
            kn_err_prefix(err, "its settings cannot be checked (--allow-volatile goes on without)");
        return err->code;
    }
    rc = redis_check_settings(r, s->address.shown, err);
    freeReplyObject(r);
    return rc;
}

/* A farm's data says how it is laid out. A later layout is not read at all: what is not known of it could be lost, or
 * rendered otherwise than it was asked for. Nothing is written: that is for who has the lead. */
static int check_format(struct redis_store *s, struct kn_err *err) {
    redisReply *r = redis_ask_plain(s->sync, err, 2, "GET", "kiln:format");
    if (!r) return err->code;
    bool none = r->type == REDIS_REPLY_NIL; /* the first start, or the first of a program that writes it */
    long have = r->type == REDIS_REPLY_STRING ? strtol(r->str, NULL, 10) : 0;
    freeReplyObject(r);
    if (none || have == STORE_FORMAT) return 0;
    if (have > STORE_FORMAT)
        return kn_err_set(
            err, KN_ECONFIG,
            "this farm's data is of format %ld, and this kiln-coordinator (%s) knows it up to %d: start the "
            "later version that wrote it; going back needs a copy from before that one "
            "(deploy/OPERATIONS.md, \"Going back\")",
            have, KILN_VERSION, STORE_FORMAT);
    return kn_err_set(err, KN_ECORRUPT,
                      "this farm's data is of no format that is known: kiln:format in Redis is %ld", have);
}

static int write_format(struct redis_store *s, struct kn_err *err) {
    char format[16];
    snprintf(format, sizeof format, "%d", STORE_FORMAT);
    redisReply *r = redis_ask_plain(s->sync, err, 4, "SET", "kiln:format", format, "NX");
    if (!r) return err->code;
    freeReplyObject(r);
    return 0;
}

static int load_scripts(struct redis_store *s, struct kn_err *err) {
    for (int i = 0; i < S_COUNT; i++) {
        redisReply *r = redis_ask_plain(s->sync, err, 3, "SCRIPT", "LOAD", redis_script_text[i]);
        if (!r) return err->code;
        bool ok = r->type == REDIS_REPLY_STRING && strlen(r->str) == 40;
        if (ok) memcpy(s->sha[i], r->str, 41);
        freeReplyObject(r);
        if (!ok) return kn_err_set(err, KN_EIO, "Redis: SCRIPT LOAD: an answer of an unknown kind");
    }
    return 0;
}

/* ---- the lead */

static void first_line(const char *path, char *out, size_t max) {
    FILE *f = fopen(path, "re");
    out[0] = 0;
    if (f && fgets(out, (int)max, f)) out[strcspn(out, "\n")] = 0;
    if (f) fclose(f);
}

/* When a process began, in ticks since boot: with its id, it tells it from a later one. 0: there is none, or
 * only what its parent has not reaped yet. */
static unsigned long long process_start(long pid) {
    char path[64], line[1024], state = 'X';
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    first_line(path, line, sizeof line);
    const char *p = strrchr(line, ')');
    unsigned long long start = 0;
    if (!p ||
        sscanf(p + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
               &state, &start) != 2)
        return 0;
    return state == 'Z' || state == 'X' ? 0 : start;
}

/* "host pid start boot pid-namespace random": enough for who comes next on this machine to see that we are
 * dead.
 */
static void name_myself(char out[256]) {
    char host[64] = "?", boot[64], ns[64] = "?";
    if (gethostname(host, sizeof host - 1) != 0) snprintf(host, sizeof host, "?");
    first_line("/proc/sys/kernel/random/boot_id", boot, sizeof boot);
    ssize_t n = readlink("/proc/self/ns/pid", ns, sizeof ns - 1);
    if (n > 0) ns[n] = 0;
    uint8_t id[KN_UUID_BYTES];
    char uuid[KN_UUID_TEXT];
    kn_uuid_random(id);
    kn_uuid_format(id, uuid);
    snprintf(out, 256, "%s %ld %llu %s %s %.8s", host, (long)getpid(), process_start(getpid()), boot, ns,
             uuid);
}

static bool is_dead(const char *who, const char *me) {
    char boot[64], ns[64], my_boot[64], my_ns[64];
    long pid, my_pid;
    unsigned long long start, my_start;
    if (sscanf(who, "%*s %ld %llu %63s %63s", &pid, &start, boot, ns) != 4 ||
        sscanf(me, "%*s %ld %llu %63s %63s", &my_pid, &my_start, my_boot, my_ns) != 4)
        return false;
    if (strcmp(boot, my_boot) != 0 || strcmp(ns, my_ns) != 0) return false;
    return process_start(pid) != start;
}

static void sleep_ms(long ms) {
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

static int read_count(struct redis_store *s, struct kn_err *err) {
    redisReply *r = redis_ask_plain(s->sync, err, 2, "GET", "kiln:count");
    if (!r) return err->code;
    s->count = r->type == REDIS_REPLY_STRING ? strtoull(r->str, NULL, 10) : 0;
    s->marked = ~s->count;
    freeReplyObject(r);
    redis_write_mark(s, true);
    return 0;
}

/* The term and the count of the mark; 0 and 0: there is none. */
static void read_mark(const struct redis_store *s, char term[24], char count[24]) {
    char line[64] = "";
    if (s->opt.mark && !s->opt.allow_volatile) first_line(s->opt.mark, line, sizeof line);
    if (sscanf(line, "%20[0-9] %20[0-9]", term, count) == 2) return;
    strcpy(term, "0");
    strcpy(count, "0");
}

void redis_write_mark(struct redis_store *s, bool durable) {
    char text[64];
    struct kn_err err = {0};
    if (!s->opt.mark || s->marked == s->count) return;
    int n = snprintf(text, sizeof text, "%llu %llu\n", (unsigned long long)s->base.term, s->count);
    if (kn_fs_replace(s->opt.mark, text, (size_t)n, durable, &err) != 0)
        kn_warn("mark_not_written reason=\"%s\"", err.text);
    else
        s->marked = s->count;
}

static int went_back(const struct redis_store *s, const char *term, const char *count, struct kn_err *err) {
    return kn_err_set(
        err, KN_ESTATE,
        "the Redis at %s has gone back: this farm's store had come to term %s and %s writes, and has "
        "less now (an older copy, FLUSHALL, a file that was cut, or a repair that was interrupted). Put "
        "the right data back. Or delete %s and start again: then the farm goes on with what Redis has, "
        "and what it lacks is lost",
        s->address.shown, term, count, s->opt.mark);
}

static int take_lead(struct redis_store *s, struct kn_err *err) {
    char least_term[24], least_count[24], lifetime[16], replace[256] = "", seen[256] = "";
    uint64_t since = kn_clock_ms();
    bool told = false;
    snprintf(lifetime, sizeof lifetime, "%u", s->opt.lead_ms);
    for (;;) {
        read_mark(s, least_term, least_count);
        redisReply *r = redis_ask_plain(s->sync, err, 10, "EVALSHA", s->sha[S_LEAD], "2", "kiln:term",
                                        "kiln:leader", s->me, lifetime, replace, least_term, least_count);
        if (!r) return err->code;
        if (r->type == REDIS_REPLY_INTEGER && r->integer < 0) {
            freeReplyObject(r);
            int rc = went_back(s, least_term, least_count, err);
            if (!s->opt.standby) return rc;
            if (!told) kn_error("store_went_back reason=\"%s\"", err->text); /* who leads may repair it */
            told = true;
            sleep_ms(200);
            continue;
        }
        if (r->type == REDIS_REPLY_INTEGER) {
            s->base.term = (uint64_t)r->integer;
            freeReplyObject(r);
            return read_count(s, err);
        }
        if (r->type != REDIS_REPLY_STRING) {
            freeReplyObject(r);
            return kn_err_set(err, KN_EIO, "Redis: taking the lead: an answer of an unknown kind");
        }
        if (strcmp(seen, r->str) != 0) {
            snprintf(seen, sizeof seen, "%s", r->str);
            kn_info("lead_taken holder=\"%s\"", seen);
        }
        freeReplyObject(r);
        if (is_dead(seen, s->me)) {
            snprintf(replace, sizeof replace, "%s", seen);
        } else if (!s->opt.standby && kn_clock_ms() - since > s->opt.lead_ms + 1000u) {
            char host[64] = "?";
            long pid = 0;
            sscanf(seen, "%63s %ld", host, &pid);
            return kn_err_set(
                err, KN_ESTATE,
                "another coordinator leads this farm: process %ld on %s. End it, or wait beside it with "
                "--standby",
                pid, host);
        } else {
            sleep_ms(200);
        }
    }
}

/* The farm's secret: drawn by the first coordinator, kept for all that follow. */
static int read_secret(struct redis_store *s, struct kn_err *err) {
    kn_digest fresh;
    char hex[KN_SHA256_HEX];
    kn_uuid_random(fresh);
    kn_uuid_random(fresh + KN_UUID_BYTES);
    kn_sha256(fresh, sizeof fresh, fresh);
    kn_hex(fresh, sizeof fresh, hex);
    redisReply *r = redis_ask_plain(s->sync, err, 4, "SET", "kiln:secret", hex, "NX");
    if (!r) return err->code;
    freeReplyObject(r);
    r = redis_ask_plain(s->sync, err, 2, "GET", "kiln:secret");
    if (!r) return err->code;
    bool ok = r->type == REDIS_REPLY_STRING && kn_unhex(r->str, s->base.secret, sizeof s->base.secret) == 0;
    freeReplyObject(r);
    return ok ? 0
              : kn_err_set(
                    err, KN_ECORRUPT,
                    "kiln:secret in Redis is no secret of a farm's: DEL it, and another is drawn (what "
                    "workers hold now is rendered again)");
}

/* Says who we are, and chooses the data base. */
static int begin_as(struct redis_store *s, struct kn_err *err) {
    const struct kn_redis_address *a = &s->address;
    redisReply *r = NULL;
    char db[16];
    if (a->password[0]) {
        r = a->user[0] ? redis_ask_plain(s->sync, err, 3, "AUTH", a->user, a->password)
                       : redis_ask_plain(s->sync, err, 2, "AUTH", a->password);
        if (!r) return err->code;
        freeReplyObject(r);
    }
    if (a->db == 0) return 0;
    snprintf(db, sizeof db, "%d", a->db);
    r = redis_ask_plain(s->sync, err, 2, "SELECT", db);
    if (!r) return err->code;
    freeReplyObject(r);
    return 0;
}

int redis_connect_sync(struct redis_store *s, struct kn_err *err) {
    const struct kn_redis_address *a = &s->address;
    struct timeval t = {.tv_sec = 5}, answer = {.tv_sec = ANSWER_MS / 1000};
    struct redis_tls_door door;
    char why[300];
    if (s->sync) redisFree(s->sync);
    s->sync = NULL;
    if (a->tls && redis_tls_open(&door, err)) return err->code;
    s->sync = a->tls    ? redisConnectUnixWithTimeout(door.path, t)
              : a->port ? redisConnectWithTimeout(a->host, a->port, t)
                        : redisConnectUnixWithTimeout(a->host, t);
    if (a->tls) redis_tls_close(&door, a);
    if (!s->sync) return kn_err_set(err, KN_ENOMEM, "Redis: out of memory");
    if (s->sync->err) return kn_err_set(err, KN_EAGAIN, "Redis at %s: %s", a->shown, s->sync->errstr);
    redisSetTimeout(s->sync, answer);
    if (a->port && !a->tls) redisEnableKeepAlive(s->sync); /* on a Unix socket it would be an error */
    int rc = begin_as(s, err);
    redisReply *r = rc == 0 && a->tls ? redis_ask_plain(s->sync, err, 1, "PING") : NULL;
    if (r) freeReplyObject(r);
    if (a->tls && rc == 0 && !r) rc = err->code;
    int refused = a->tls && rc ? redis_tls_why(why, sizeof why) : 0;
    return refused ? kn_err_set(err, refused, "Redis at %s: %s", a->shown, why) : rc;
}

int redis_open_sync(struct redis_store *s, struct kn_err *err) {
    name_myself(s->me);
    int rc = kn_redis_address_read(s->opt.address, &s->address, err);
    uint64_t begun = kn_clock_ms();
    while (rc == 0) {
        rc = redis_connect_sync(s, err);
        if (rc == 0) rc = check_redis(s, err);
        if (rc == 0) rc = check_format(s, err);
        if (rc == 0) rc = load_scripts(s, err);
        if (rc == 0) rc = take_lead(s, err);
        if (rc == 0) rc = write_format(s, err);
        if (rc == 0) rc = read_secret(s, err);
        if (rc != KN_EAGAIN) break;
        bool loading = strstr(err->text, "LOADING");
        if (!loading && kn_clock_ms() - begun > START_MS) {
            rc = err->code = KN_EIO;
            break;
        }
        sleep_ms(loading ? 500 : 100);
        rc = 0;
    }
    return rc;
}
