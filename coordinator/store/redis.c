/* The store in Redis. See store.h.
 *
 * The keys; <id> is the batch's UUID as text, and numbers are decimal text unless said otherwise.
 *
 *     kiln:term       the term of the coordinator that leads; who takes the lead raises it by one (INCR)
 *     kiln:leader     who that is, with an expiry that it renews: a second one does not start beside it
 *     kiln:seq        counts the sealed batches
 *     kiln:models     hash: SHA-256 of a model that a worker announced -> "date in ms" and a blank, and what the
 *                     caller tells of it
 *     kiln:batches    sorted set: ids of the sealed batches, by that count
 *     kiln:staged     set: ids of the batches that are being submitted and not sealed
 *
 *     kiln:b:<id>     hash: begin               the accepted request, which the store does not look into
 *                           tasks, chunks       how many
 *                           state               enum kn_batch_state
 *                           priority
 *                           created, finished   Unix time in ms
 *                           seq                 its count, once it is sealed
 *     kiln:b:<id>:c   hash: number of a chunk -> its tasks, deflated as they were submitted
 *     kiln:b:<id>:n   hash: number -> name of a worker, a backend class or an engine; records name it by number
 *     kiln:b:<id>:r   string: one record of STORE_RECORD_BYTES for each task, in the order of their numbers,
 *                     written by SETRANGE. A record's last byte is not 0 once the task is committed; a record
 *                     that was voided is 0 again.
 *     kiln:b:<id>:f   hash: task -> its failure, as "code attempt order length-of-worker worker reason"
 *     kiln:b:<id>:a   hash: task -> how often it was charged; where more is known of its attempts, a blank and
 *                     their story behind it (coordinator/history.h). A bare number is what earlier programs
 *                     wrote, and what they read of the longer form.
 *
 * Every write is a script. It first compares the caller's term with kiln:term, and validates everything
 * before it writes anything. Each can be repeated. Scripts are loaded at each connection; a Redis that forgot
 * them answers NOSCRIPT, and then a new connection is made (redis_link.h).
 *
 * Opening and reading back are synchronous, since there is nothing else to do yet; from store_redis_start()
 * on, everything goes through a link on the loop. */
#include "coordinator/store/redis.h"

#include <hiredis/hiredis.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "coordinator/store/redis_link.h"

#define ANSWER_MS 60000 /* of the synchronous part */
#define START_MS 30000  /* for a Redis that is not there yet */
#define QUEUE_BYTES_MAX (512u << 20)
#define CHUNKS_A_READ 32
#define RECORDS_A_READ 16384
#define VERSION_MIN 7
#define ARGS_MAX 20
#define REDIS_CHARGE_BYTES_MAX 65536 /* a task's charges with the story of its attempts */

enum script {
    S_LEAD,
    S_RENEW,
    S_BEGIN,
    S_CHUNK,
    S_SEAL,
    S_PUT,
    S_MODEL,
    S_COMMIT,
    S_FAIL,
    S_VOID,
    S_STATE,
    S_REMOVE,
    S_COUNT
};

/* The names that every script may use: the codes of base/err.h, and the size of a record. */
#define LUA_LOCAL(name, value, words) "local " #name " = " #value "\n"
#define LUA_LOCAL_OF(name, macro) LUA_LOCAL(name, macro, "")
#define NAMES "#!lua\n" KN_ERR_TABLE(LUA_LOCAL) LUA_LOCAL_OF(RECORD_BYTES, STORE_RECORD_BYTES)

/* The beginning of every script but `lead`: KEYS[1] is kiln:term, and ARGV[1] the caller's term. */
#define FENCE NAMES "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return KN_ETERM end\n"

static const char *const script_text[S_COUNT] = {
    /* KEYS term, leader; ARGV me, lifetime in ms, whom I may replace ("" for nobody).
     * Returns the new term, or who leads. */
    [S_LEAD] =
        "#!lua\n"
        "local who = redis.call('GET', KEYS[2])\n"
        "if who and who ~= ARGV[1] and who ~= ARGV[3] then return who end\n"
        "redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])\n"
        "return redis.call('INCR', KEYS[1])\n",
    /* KEYS term, leader; ARGV term, me, lifetime in ms: 0 gives the lead back. */
    [S_RENEW] = FENCE
    "if ARGV[3] == '0' then redis.call('DEL', KEYS[2]) return KN_OK end\n"
    "redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])\n"
    "return KN_OK\n",
    /* KEYS term, batch, staged; ARGV term, id, begin, tasks, chunks, priority, created, the state active */
    [S_BEGIN] = FENCE
    "if redis.call('HEXISTS', KEYS[2], 'seq') == 1 then return KN_EEXIST end\n"
    "redis.call('HSET', KEYS[2], 'begin', ARGV[3], 'tasks', ARGV[4], 'chunks', ARGV[5],\n"
    "  'priority', ARGV[6], 'created', ARGV[7], 'state', ARGV[8], 'finished', '0')\n"
    "redis.call('SADD', KEYS[3], ARGV[2])\n"
    "return KN_OK\n",
    /* KEYS term, batch, chunks; ARGV term, chunk, bytes */
    [S_CHUNK] = FENCE
    "local b = redis.call('HMGET', KEYS[2], 'tasks', 'seq')\n"
    "if not b[1] then return KN_EGONE end\n"
    "if b[2] then return KN_EEXIST end\n"
    "redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])\n"
    "return KN_OK\n",
    /* KEYS term, batch, chunks, batches, staged, seq; ARGV term, id, chunks */
    [S_SEAL] = FENCE
    "local b = redis.call('HMGET', KEYS[2], 'tasks', 'seq')\n"
    "if not b[1] then return KN_EGONE end\n"
    "if b[2] then return KN_EEXIST end\n"
    "if redis.call('HLEN', KEYS[3]) ~= tonumber(ARGV[3]) then return KN_ESTATE end\n"
    "local seq = redis.call('INCR', KEYS[6])\n"
    "redis.call('HSET', KEYS[2], 'seq', seq)\n"
    "redis.call('ZADD', KEYS[4], seq, ARGV[2])\n"
    "redis.call('SREM', KEYS[5], ARGV[2])\n"
    "return KN_OK\n",
    /* KEYS term, batch, hash; ARGV term, field, value */
    [S_PUT] = FENCE
    "if redis.call('EXISTS', KEYS[2]) == 0 then return KN_EGONE end\n"
    "redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])\n"
    "return KN_OK\n",
    /* KEYS term, models; ARGV term, SHA-256, what is told of it, how many are kept: the oldest give way */
    [S_MODEL] = FENCE
    "redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])\n"
    "local all = redis.call('HGETALL', KEYS[2])\n"
    "while #all / 2 > tonumber(ARGV[4]) do\n"
    "  local old = 1\n"
    "  for i = 3, #all, 2 do\n"
    "    if tonumber(all[i + 1]:match('^%d+') or '0') < tonumber(all[old + 1]:match('^%d+') or '0') then old = i end\n"
    "  end\n"
    "  redis.call('HDEL', KEYS[2], all[old])\n"
    "  all = redis.call('HGETALL', KEYS[2])\n"
    "end\n"
    "return KN_OK\n",
    /* KEYS term, batch, records, failures; ARGV term, task, record, the state cancelled */
    [S_COMMIT] = FENCE
    "local b = redis.call('HMGET', KEYS[2], 'seq', 'state')\n"
    "if not b[1] or b[2] == ARGV[4] then return KN_EGONE end\n"
    "local at = tonumber(ARGV[2]) * RECORD_BYTES\n"
    "local old = redis.call('GETRANGE', KEYS[3], at, at + RECORD_BYTES - 1)\n"
    "if #old == RECORD_BYTES and old:byte(RECORD_BYTES) ~= 0 then return {KN_EEXIST, old} end\n"
    "redis.call('SETRANGE', KEYS[3], at, ARGV[3])\n"
    "redis.call('HDEL', KEYS[4], ARGV[2])\n"
    "return KN_OK\n",
    /* KEYS term, batch, records, failures; ARGV term, task, failure, the state cancelled */
    [S_FAIL] = FENCE
    "local b = redis.call('HMGET', KEYS[2], 'seq', 'state')\n"
    "if not b[1] or b[2] == ARGV[4] then return KN_EGONE end\n"
    "local at = tonumber(ARGV[2]) * RECORD_BYTES + RECORD_BYTES - 1\n"
    "local old = redis.call('GETRANGE', KEYS[3], at, at)\n"
    "if #old == 1 and old:byte(1) ~= 0 then return KN_EEXIST end\n"
    "redis.call('HSET', KEYS[4], ARGV[2], ARGV[3])\n"
    "return KN_OK\n",
    /* KEYS term, batch, records; ARGV term, task, the record that is void, the states done and active */
    [S_VOID] = FENCE
    "local b = redis.call('HMGET', KEYS[2], 'seq', 'state')\n"
    "if not b[1] then return KN_EGONE end\n"
    "local at = tonumber(ARGV[2]) * RECORD_BYTES\n"
    "if redis.call('GETRANGE', KEYS[3], at, at + RECORD_BYTES - 1) ~= ARGV[3] then return KN_EEXIST end\n"
    "redis.call('SETRANGE', KEYS[3], at, string.rep('\\0', RECORD_BYTES))\n"
    "if b[2] == ARGV[4] then redis.call('HSET', KEYS[2], 'state', ARGV[5], 'finished', '0') end\n"
    "return KN_OK\n",
    /* KEYS term, batch, failures, charges; ARGV term, state, priority, finished, 1 when retried */
    [S_STATE] = FENCE
    "if redis.call('HEXISTS', KEYS[2], 'seq') == 0 then return KN_EGONE end\n"
    "redis.call('HSET', KEYS[2], 'state', ARGV[2], 'priority', ARGV[3], 'finished', ARGV[4])\n"
    "if ARGV[5] == '1' then\n"
    "  redis.call('DEL', KEYS[3])\n"
    "  local a = redis.call('HGETALL', KEYS[4])\n"
    "  for i = 1, #a, 2 do\n"
    "    local at = a[i + 1]:find(' ', 1, true)\n"
    "    if at then redis.call('HSET', KEYS[4], a[i], '0' .. a[i + 1]:sub(at))\n"
    "    else redis.call('HDEL', KEYS[4], a[i]) end\n"
    "  end\n"
    "end\n"
    "return KN_OK\n",
    /* KEYS term, batches, staged, then the batch's own; ARGV term, id */
    [S_REMOVE] = FENCE
    "redis.call('ZREM', KEYS[2], ARGV[2])\n"
    "redis.call('SREM', KEYS[3], ARGV[2])\n"
    "for i = 4, #KEYS do redis.call('UNLINK', KEYS[i]) end\n"
    "return KN_OK\n",
};

struct redis_store {
    struct store base;
    struct store_redis_options opt;
    struct redis_address address;
    char me[256];
    char term[24];
    char sha[S_COUNT][41];
    redisContext *sync; /* until store_redis_start() */
    struct redis_link *link;
    uv_timer_t *renew; /* owns; a handle of its own, closed after this struct is gone */
    size_t waiting;
    bool lost;
};

struct redis_write {
    struct redis_store *s;
    store_done done; /* may be NULL */
    void *ctx;
};

/* ---- keys */

enum { KEY_MAX = 64 };
struct keys {
    char batch[KEY_MAX], chunks[KEY_MAX], names[KEY_MAX], records[KEY_MAX], failures[KEY_MAX],
        charges[KEY_MAX];
    char id[KN_UUID_TEXT];
};

static void keys_of(const kn_id id, struct keys *k) {
    kn_uuid_format(id, k->id);
    snprintf(k->batch, KEY_MAX, "kiln:b:%s", k->id);
    snprintf(k->chunks, KEY_MAX, "kiln:b:%s:c", k->id);
    snprintf(k->names, KEY_MAX, "kiln:b:%s:n", k->id);
    snprintf(k->records, KEY_MAX, "kiln:b:%s:r", k->id);
    snprintf(k->failures, KEY_MAX, "kiln:b:%s:f", k->id);
    snprintf(k->charges, KEY_MAX, "kiln:b:%s:a", k->id);
}

/* ---- a command's words */

struct words {
    const char *v[ARGS_MAX];
    size_t len[ARGS_MAX];
    char numbers[8][24];
    int count, number_count;
};

static void word(struct words *w, const char *s) {
    w->v[w->count] = s;
    w->len[w->count++] = strlen(s);
}
static void bytes(struct words *w, const void *data, size_t len) {
    w->v[w->count] = data;
    w->len[w->count++] = len;
}
static void number(struct words *w, long long n) {
    char *p = w->numbers[w->number_count++];
    snprintf(p, sizeof w->numbers[0], "%lld", n);
    word(w, p);
}
/* EVALSHA script with `keys` keys, the first of them kiln:term. */
static void begin_script(struct words *w, const struct redis_store *s, enum script script,
                         const char *const *keys, int count) {
    w->count = w->number_count = 0;
    word(w, "EVALSHA");
    word(w, s->sha[script]);
    number(w, count + 1);
    word(w, "kiln:term");
    for (int i = 0; i < count; i++) word(w, keys[i]);
    word(w, s->term);
}

/* ---- the synchronous part */

static redisReply *ask(redisContext *c, const struct words *w) {
    return redisCommandArgv(c, w->count, (const char **)(uintptr_t)w->v, w->len);
}

/* One command of plain words; NULL or an error reply: err says so. */
static redisReply *ask_plain(redisContext *c, struct kn_err *err, int count, ...) {
    struct words w = {0};
    va_list ap;
    va_start(ap, count);
    for (int i = 0; i < count; i++) word(&w, va_arg(ap, const char *));
    va_end(ap);
    redisReply *r = ask(c, &w);
    if (!r) {
        kn_err_set(err, KN_EIO, "Redis: %s: %s", w.v[0], c->errstr[0] ? c->errstr : "connection lost");
    } else if (r->type == REDIS_REPLY_ERROR) {
        bool password = strncmp(r->str, "NOAUTH", 6) == 0 || strncmp(r->str, "WRONGPASS", 9) == 0;
        kn_err_set(err,
                   strncmp(r->str, "LOADING", 7) == 0 ? KN_EAGAIN
                   : password                         ? KN_ECONFIG
                                                      : KN_EIO,
                   "Redis: %s: %s%s", w.v[0], r->str,
                   password ? " It wants a password, and kiln has none to give: use a Redis without one on a "
                              "Unix socket, or let kiln up start its own"
                            : "");
        freeReplyObject(r);
        r = NULL;
    }
    return r;
}

static const struct setting {
    const char *name, *want;
} settings[] = {
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

/* Compares the answer to CONFIG GET with the settings that make writes durable. */
static int check_settings(const redisReply *r, const char *address, struct kn_err *err) {
    char fix[512] = "";
    size_t used = 0;
    if (r->type != REDIS_REPLY_ARRAY) return kn_err_set(err, KN_ECONFIG, "Redis does not tell its settings");
    for (size_t k = 0; k < sizeof settings / sizeof settings[0]; k++) {
        const char *have = NULL;
        for (size_t i = 0; i + 1 < r->elements; i += 2)
            if (strcmp(r->element[i]->str, settings[k].name) == 0) have = r->element[i + 1]->str;
        if (have && strcmp(have, settings[k].want) == 0) continue;
        int n = snprintf(fix + used, sizeof fix - used, "%s%s %s (it is %s)", used ? ", " : "",
                         settings[k].name, settings[k].want, have ? have : "unknown");
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
    redisReply *r = ask_plain(s->sync, err, 2, "INFO", "server");
    if (!r) return err->code;
    int rc = check_version(r, err);
    freeReplyObject(r);
    if (rc != 0 || s->opt.allow_volatile) return rc;
    r = ask_plain(s->sync, err, 6, "CONFIG", "GET", settings[0].name, settings[1].name, settings[2].name,
                  settings[3].name);
    if (!r) {
        if (err->code == KN_EIO)
            kn_err_prefix(err, "its settings cannot be checked (--allow-volatile goes on without)");
        return err->code;
    }
    rc = check_settings(r, s->opt.address, err);
    freeReplyObject(r);
    return rc;
}

static int load_scripts(struct redis_store *s, struct kn_err *err) {
    for (int i = 0; i < S_COUNT; i++) {
        redisReply *r = ask_plain(s->sync, err, 3, "SCRIPT", "LOAD", script_text[i]);
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

static int take_lead(struct redis_store *s, struct kn_err *err) {
    char lifetime[16], replace[256] = "", seen[256] = "";
    uint64_t since = kn_clock_ms();
    snprintf(lifetime, sizeof lifetime, "%u", s->opt.lead_ms);
    for (;;) {
        redisReply *r = ask_plain(s->sync, err, 8, "EVALSHA", s->sha[S_LEAD], "2", "kiln:term", "kiln:leader",
                                  s->me, lifetime, replace);
        if (!r) return err->code;
        if (r->type == REDIS_REPLY_INTEGER) {
            s->base.term = (uint64_t)r->integer;
            snprintf(s->term, sizeof s->term, "%lld", r->integer);
            freeReplyObject(r);
            return 0;
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

static int connect_sync(struct redis_store *s, struct kn_err *err) {
    struct timeval t = {.tv_sec = 5}, answer = {.tv_sec = ANSWER_MS / 1000};
    if (s->sync) redisFree(s->sync);
    s->sync = s->address.port ? redisConnectWithTimeout(s->address.host, s->address.port, t)
                              : redisConnectUnixWithTimeout(s->address.host, t);
    if (!s->sync) return kn_err_set(err, KN_ENOMEM, "Redis: out of memory");
    if (s->sync->err) return kn_err_set(err, KN_EAGAIN, "Redis at %s: %s", s->opt.address, s->sync->errstr);
    redisSetTimeout(s->sync, answer);
    if (s->address.port) redisEnableKeepAlive(s->sync); /* on a Unix socket it would be an error */
    return 0;
}

static const struct store_ops redis_ops;

int store_redis_open(const struct store_redis_options *opt, struct store **out, struct kn_err *err) {
    struct redis_store *s = calloc(1, sizeof *s);
    if (!s) return kn_err_set(err, KN_ENOMEM, "Redis: out of memory");
    s->base.ops = &redis_ops;
    s->opt = *opt;
    if (!s->opt.lead_ms) s->opt.lead_ms = 10000;
    name_myself(s->me);
    int rc = redis_address_parse(opt->address, &s->address, err);
    uint64_t begun = kn_clock_ms();
    while (rc == 0) {
        rc = connect_sync(s, err);
        if (rc == 0) rc = check_redis(s, err);
        if (rc == 0) rc = load_scripts(s, err);
        if (rc == 0) rc = take_lead(s, err);
        if (rc != KN_EAGAIN) break;
        bool loading = strstr(err->text, "LOADING");
        if (!loading && kn_clock_ms() - begun > START_MS) {
            rc = err->code = KN_EIO;
            break;
        }
        sleep_ms(loading ? 500 : 100);
        rc = 0;
    }
    if (rc != 0) {
        if (s->sync) redisFree(s->sync);
        free(s);
        return rc;
    }
    kn_info("store_open redis=%s term=%s", s->opt.address, s->term);
    *out = &s->base;
    return 0;
}

/* ---- reading back */

static int odd(struct kn_err *err, const char *key) {
    return kn_err_set(err, KN_ECORRUPT, "Redis: %s: not what kiln writes there", key);
}

static bool is_text(const redisReply *r) {
    return r->type == REDIS_REPLY_STRING;
}

static unsigned long long number_of(const redisReply *r) {
    return is_text(r) ? strtoull(r->str, NULL, 10) : 0;
}

static int load_chunks(struct redis_store *s, const struct keys *k, uint32_t count,
                       const struct store_reader *rd, struct kn_err *err) {
    for (uint32_t from = 0; from < count; from += CHUNKS_A_READ) {
        char n[CHUNKS_A_READ][12];
        const char *argv[CHUNKS_A_READ + 2] = {"HMGET", k->chunks};
        int argc = 2;
        for (uint32_t i = from; i < count && i < from + CHUNKS_A_READ; i++, argc++) {
            snprintf(n[i - from], sizeof n[0], "%u", i);
            argv[argc] = n[i - from];
        }
        redisReply *r = redisCommandArgv(s->sync, argc, argv, NULL);
        if (!r) return kn_err_set(err, KN_EIO, "Redis: HMGET: %s", s->sync->errstr);
        int rc = r->type == REDIS_REPLY_ARRAY ? 0 : odd(err, k->chunks);
        for (size_t i = 0; rc == 0 && i < r->elements; i++)
            if (is_text(r->element[i]))
                rc = rd->chunk(rd->ctx, from + (uint32_t)i, r->element[i]->str, r->element[i]->len, err);
        freeReplyObject(r);
        if (rc != 0) return rc;
    }
    return 0;
}

static int load_records(struct redis_store *s, const struct keys *k, uint32_t tasks,
                        const struct store_reader *rd, struct kn_err *err) {
    for (uint32_t from = 0; from < tasks; from += RECORDS_A_READ) {
        char a[24], b[24];
        snprintf(a, sizeof a, "%llu", (unsigned long long)from * STORE_RECORD_BYTES);
        snprintf(b, sizeof b, "%llu", ((unsigned long long)from + RECORDS_A_READ) * STORE_RECORD_BYTES - 1);
        redisReply *r = ask_plain(s->sync, err, 4, "GETRANGE", k->records, a, b);
        if (!r) return err->code;
        int rc = is_text(r) && r->len % STORE_RECORD_BYTES == 0 ? 0 : odd(err, k->records);
        size_t n = rc == 0 ? r->len / STORE_RECORD_BYTES : 0;
        for (size_t i = 0; rc == 0 && i < n && from + i < tasks; i++) {
            struct store_record rec;
            if (store_record_unpack((const uint8_t *)r->str + i * STORE_RECORD_BYTES, &rec))
                rc = rd->record(rd->ctx, from + (uint32_t)i, &rec, err);
        }
        freeReplyObject(r);
        if (rc != 0) return rc;
        if (n < RECORDS_A_READ) break;
    }
    return 0;
}

/* Fields and values of a small hash. */
static int load_hash(struct redis_store *s, const char *key,
                     int (*each)(const struct store_reader *rd, uint32_t n, const redisReply *value,
                                 struct kn_err *err),
                     const struct store_reader *rd, struct kn_err *err) {
    redisReply *r = ask_plain(s->sync, err, 2, "HGETALL", key);
    if (!r) return err->code;
    int rc = r->type == REDIS_REPLY_ARRAY ? 0 : odd(err, key);
    for (size_t i = 0; rc == 0 && i + 1 < r->elements; i += 2) {
        if (!is_text(r->element[i]) || !is_text(r->element[i + 1]))
            rc = odd(err, key);
        else
            rc = each(rd, (uint32_t)number_of(r->element[i]), r->element[i + 1], err);
    }
    freeReplyObject(r);
    return rc;
}

static int each_name(const struct store_reader *rd, uint32_t n, const redisReply *v, struct kn_err *err) {
    return rd->name(rd->ctx, n, v->str, err);
}
static int each_charge(const struct store_reader *rd, uint32_t n, const redisReply *v, struct kn_err *err) {
    const char *blank = strchr(v->str, ' ');
    return rd->charge(rd->ctx, n, (uint32_t)number_of(v), blank ? blank + 1 : "", err);
}
static int each_failure(const struct store_reader *rd, uint32_t n, const redisReply *v, struct kn_err *err) {
    struct store_failure f = {.task = n};
    unsigned worker_len = 0;
    int at = 0;
    char worker[KN_NAME_MAX + 1];
    if (sscanf(v->str, "%d %u %u %u%n", &f.code, &f.attempt, &f.order, &worker_len, &at) != 4 ||
        worker_len > KN_NAME_MAX || (size_t)at + 2 + worker_len > v->len)
        return odd(err, "a failure");
    memcpy(worker, v->str + at + 1, worker_len);
    worker[worker_len] = 0;
    f.worker = worker;
    f.reason = v->str + at + 2 + worker_len;
    return rd->failure(rd->ctx, &f, err);
}

static int load_batch(struct redis_store *s, const char *text, bool sealed, const struct store_reader *rd,
                      struct kn_err *err) {
    kn_id id;
    struct keys k;
    if (kn_uuid_parse(text, id) != 0) return odd(err, "kiln:batches");
    keys_of(id, &k);
    redisReply *r = ask_plain(s->sync, err, 9, "HMGET", k.batch, "begin", "tasks", "chunks", "state",
                              "priority", "created", "finished");
    if (!r) return err->code;
    struct store_batch b = {.sealed = sealed};
    int rc =
        r->type == REDIS_REPLY_ARRAY && r->elements == 7 && is_text(r->element[0]) ? 0 : odd(err, k.batch);
    if (rc == 0) {
        memcpy(b.id, id, sizeof id);
        b.begin = r->element[0]->str;
        b.begin_len = r->element[0]->len;
        b.tasks = (uint32_t)number_of(r->element[1]);
        b.chunks = (uint32_t)number_of(r->element[2]);
        b.state = (enum kn_batch_state)number_of(r->element[3]);
        b.priority = is_text(r->element[4]) ? (int32_t)strtol(r->element[4]->str, NULL, 10) : 0;
        b.created_wall_ms = number_of(r->element[5]);
        b.finished_wall_ms = number_of(r->element[6]);
        if (b.tasks == 0 || b.tasks > KN_TASKS_PER_BATCH_MAX || b.chunks == 0 || b.chunks > b.tasks ||
            b.state < KN_BATCH_ACTIVE || b.state > KN_BATCH_CANCELLED)
            rc = odd(err, k.batch);
    }
    if (rc == 0) rc = rd->batch(rd->ctx, &b, err);
    freeReplyObject(r);
    if (rc == 0) rc = load_chunks(s, &k, b.chunks, rd, err);
    if (rc == 0) rc = load_hash(s, k.names, each_name, rd, err);
    if (rc == 0) rc = load_records(s, &k, b.tasks, rd, err);
    if (rc == 0) rc = load_hash(s, k.failures, each_failure, rd, err);
    if (rc == 0) rc = load_hash(s, k.charges, each_charge, rd, err);
    if (rc == 0) rc = rd->batch_end(rd->ctx, err);
    if (rc != 0) kn_err_prefix(err, "batch %s", text);
    return rc;
}

static int renew_sync(struct redis_store *s, struct kn_err *err) {
    char lifetime[16];
    snprintf(lifetime, sizeof lifetime, "%u", s->opt.lead_ms);
    redisReply *r = ask_plain(s->sync, err, 8, "EVALSHA", s->sha[S_RENEW], "2", "kiln:term", "kiln:leader",
                              s->term, s->me, lifetime);
    if (!r) return err->code;
    int rc = r->type == REDIS_REPLY_INTEGER ? (int)r->integer : KN_EIO;
    freeReplyObject(r);
    return rc == 0 ? 0 : kn_err_set(err, rc, "Redis: %s", kn_err_words(rc));
}

static int load_list(struct redis_store *s, bool sealed, const struct store_reader *rd, struct kn_err *err) {
    redisReply *r = sealed ? ask_plain(s->sync, err, 4, "ZRANGE", "kiln:batches", "0", "-1")
                           : ask_plain(s->sync, err, 2, "SMEMBERS", "kiln:staged");
    if (!r) return err->code;
    int rc = r->type == REDIS_REPLY_ARRAY ? 0 : odd(err, "kiln:batches");
    uint64_t renewed = kn_clock_ms();
    for (size_t i = 0; rc == 0 && i < r->elements; i++) {
        rc = is_text(r->element[i]) ? load_batch(s, r->element[i]->str, sealed, rd, err)
                                    : odd(err, "kiln:batches");
        if (rc == 0 && kn_clock_ms() - renewed > s->opt.lead_ms / 3) {
            rc = renew_sync(s, err);
            renewed = kn_clock_ms();
        }
    }
    freeReplyObject(r);
    return rc;
}

static int load_models(struct redis_store *s, const struct store_reader *rd, struct kn_err *err) {
    redisReply *r = ask_plain(s->sync, err, 2, "HGETALL", "kiln:models");
    if (!r) return err->code;
    int rc = r->type == REDIS_REPLY_ARRAY ? 0 : odd(err, "kiln:models");
    for (size_t i = 0; rc == 0 && i + 1 < r->elements; i += 2) {
        const redisReply *v = r->element[i + 1];
        const char *blank = is_text(v) ? memchr(v->str, ' ', v->len) : NULL;
        if (!blank) continue; /* what a later program may write otherwise costs that model alone */
        rc = rd->model(rd->ctx, strtoull(v->str, NULL, 10), blank + 1, v->len - (size_t)(blank + 1 - v->str),
                       err);
    }
    freeReplyObject(r);
    return rc;
}

static int redis_load(struct store *base, const struct store_reader *rd, struct kn_err *err) {
    struct redis_store *s = (struct redis_store *)base;
    int rc = load_list(s, true, rd, err);
    if (rc == 0) rc = load_list(s, false, rd, err);
    return rc == 0 && rd->model ? load_models(s, rd, err) : rc;
}

/* ---- on the loop */

static void lose(struct redis_store *s, int code, const char *text) {
    if (s->lost) return;
    s->lost = true;
    kn_error("store_lost code=%d reason=\"%s\"", code, text);
    if (s->base.lost) s->base.lost(s->base.lost_ctx, code, text);
}

static void on_reply(void *ctx, const redisReply *r) {
    struct redis_write *p = ctx;
    struct redis_store *s = p->s;
    const redisReply *code = r;
    int rc = KN_EINTERNAL;
    const void *data = NULL;
    size_t len = 0;
    if (!r) { /* closed */
        if (p->done) p->done(p->ctx, KN_ECANCELED, NULL, 0);
        free(p);
        return;
    }
    if (r->type == REDIS_REPLY_ARRAY && r->elements == 2 && r->element[1]->type == REDIS_REPLY_STRING) {
        code = r->element[0];
        data = r->element[1]->str;
        len = r->element[1]->len;
    }
    if (code->type == REDIS_REPLY_INTEGER && code->integer <= 0 && code->integer > -100)
        rc = (int)code->integer;
    else
        kn_error("redis_answer_unexpected type=%d text=\"%s\"", r->type,
                 r->type == REDIS_REPLY_ERROR ? r->str : "");
    s->waiting--;
    if (p->done) p->done(p->ctx, rc, data, len);
    free(p);
    if (rc == KN_ETERM) lose(s, rc, "another coordinator took the lead");
}

static int send_script(struct redis_store *s, const struct words *w, store_done done, void *ctx) {
    struct redis_write *p = malloc(sizeof *p);
    if (!p) return KN_ENOMEM;
    *p = (struct redis_write){s, done, ctx};
    int rc = redis_link_send(s->link, w->count, (const char **)(uintptr_t)w->v, w->len, on_reply, p);
    if (rc != 0)
        free(p);
    else
        s->waiting++;
    return rc;
}

static void on_renewed(void *ctx, const redisReply *r) {
    struct redis_store *s = ctx;
    if (r->type == REDIS_REPLY_INTEGER && r->integer == KN_ETERM)
        lose(s, KN_ETERM, "another coordinator took the lead");
}

static void renew_words(struct redis_store *s, struct words *w, long long lifetime) {
    const char *const keys[] = {"kiln:leader"};
    begin_script(w, s, S_RENEW, keys, 1);
    word(w, s->me);
    number(w, lifetime);
}

static void on_renew(uv_timer_t *t) {
    struct redis_store *s = t->data;
    struct words w;
    if (!redis_link_is_up(s->link)) return;
    renew_words(s, &w, s->opt.lead_ms);
    redis_link_direct(s->link, w.count, w.v, w.len, on_renewed, s);
}

/* The greeting of a new connection: version, settings, scripts, the lead. */

static void on_greeted(void *ctx, const redisReply *r) {
    struct redis_store *s = ctx;
    on_renewed(ctx, r);
    if (!s->lost) redis_link_up(s->link);
}

static void on_script(void *ctx, const redisReply *r) {
    (void)ctx;
    if (r->type == REDIS_REPLY_ERROR) kn_error("redis_script_refused error=\"%s\"", r->str);
}

static void on_settings(void *ctx, const redisReply *r) {
    struct redis_store *s = ctx;
    struct kn_err err = {0};
    if (r->type == REDIS_REPLY_ARRAY && check_settings(r, s->opt.address, &err) != 0)
        lose(s, err.code, err.text);
}

static void greet(void *ctx) {
    struct redis_store *s = ctx;
    struct words w = {0};
    if (!s->opt.allow_volatile) {
        word(&w, "CONFIG");
        word(&w, "GET");
        for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) word(&w, settings[i].name);
        redis_link_direct(s->link, w.count, w.v, w.len, on_settings, s);
    }
    for (int i = 0; i < S_COUNT; i++) {
        w.count = 0;
        word(&w, "SCRIPT");
        word(&w, "LOAD");
        word(&w, script_text[i]);
        redis_link_direct(s->link, w.count, w.v, w.len, on_script, s);
    }
    renew_words(s, &w, s->opt.lead_ms);
    redis_link_direct(s->link, w.count, w.v, w.len, on_greeted, s);
}

int store_redis_start(struct store *base, uv_loop_t *loop, struct kn_err *err) {
    struct redis_store *s = (struct redis_store *)base;
    struct redis_link_options opt = {
        .address = s->address, .greet = greet, .ctx = s, .bytes_max = QUEUE_BYTES_MAX};
    redisFree(s->sync);
    s->sync = NULL;
    s->renew = malloc(sizeof *s->renew);
    if (!s->renew) return kn_err_set(err, KN_ENOMEM, "Redis: out of memory");
    uv_timer_init(loop, s->renew);
    s->renew->data = s;
    uv_timer_start(s->renew, on_renew, s->opt.lead_ms / 3, s->opt.lead_ms / 3);
    return redis_link_create(loop, &opt, &s->link, err);
}

/* ---- the writes */

static int redis_begin(struct store *base, const struct store_batch *b, store_done done, void *ctx) {
    struct redis_store *s = (struct redis_store *)base;
    struct keys k;
    struct words w;
    keys_of(b->id, &k);
    const char *const keys[] = {k.batch, "kiln:staged"};
    begin_script(&w, s, S_BEGIN, keys, 2);
    word(&w, k.id);
    bytes(&w, b->begin, b->begin_len);
    number(&w, b->tasks);
    number(&w, b->chunks);
    number(&w, b->priority);
    number(&w, (long long)b->created_wall_ms);
    number(&w, KN_BATCH_ACTIVE);
    return send_script(s, &w, done, ctx);
}

static int redis_chunk(struct store *base, const kn_id id, uint32_t chunk, const void *data, size_t len,
                       store_done done, void *ctx) {
    struct redis_store *s = (struct redis_store *)base;
    struct keys k;
    struct words w;
    keys_of(id, &k);
    const char *const keys[] = {k.batch, k.chunks};
    begin_script(&w, s, S_CHUNK, keys, 2);
    number(&w, chunk);
    bytes(&w, data, len);
    return send_script(s, &w, done, ctx);
}

static int redis_seal(struct store *base, const kn_id id, uint32_t chunks, store_done done, void *ctx) {
    struct redis_store *s = (struct redis_store *)base;
    struct keys k;
    struct words w;
    keys_of(id, &k);
    const char *const keys[] = {k.batch, k.chunks, "kiln:batches", "kiln:staged", "kiln:seq"};
    begin_script(&w, s, S_SEAL, keys, 5);
    word(&w, k.id);
    number(&w, chunks);
    return send_script(s, &w, done, ctx);
}

static int redis_name(struct store *base, const kn_id id, uint32_t n, const char *text) {
    struct redis_store *s = (struct redis_store *)base;
    struct keys k;
    struct words w;
    keys_of(id, &k);
    const char *const keys[] = {k.batch, k.names};
    begin_script(&w, s, S_PUT, keys, 2);
    number(&w, n);
    word(&w, text);
    return send_script(s, &w, NULL, NULL);
}

static int redis_commit(struct store *base, const kn_id id, uint32_t task, const struct store_record *r,
                        store_done done, void *ctx) {
    struct redis_store *s = (struct redis_store *)base;
    struct keys k;
    struct words w;
    uint8_t packed[STORE_RECORD_BYTES];
    keys_of(id, &k);
    store_record_pack(r, packed);
    const char *const keys[] = {k.batch, k.records, k.failures};
    begin_script(&w, s, S_COMMIT, keys, 3);
    number(&w, task);
    bytes(&w, packed, sizeof packed);
    number(&w, KN_BATCH_CANCELLED);
    return send_script(s, &w, done, ctx);
}

static int redis_fail(struct store *base, const kn_id id, const struct store_failure *f, store_done done,
                      void *ctx) {
    struct redis_store *s = (struct redis_store *)base;
    struct keys k;
    struct words w;
    char text[KN_REASON_MAX + KN_NAME_MAX + 64];
    keys_of(id, &k);
    int n = snprintf(text, sizeof text, "%d %u %u %zu %.*s %.*s", f->code, f->attempt, f->order,
                     strnlen(f->worker, KN_NAME_MAX), KN_NAME_MAX, f->worker, KN_REASON_MAX, f->reason);
    const char *const keys[] = {k.batch, k.records, k.failures};
    begin_script(&w, s, S_FAIL, keys, 3);
    number(&w, f->task);
    bytes(&w, text, n > 0 ? (size_t)n : 0);
    number(&w, KN_BATCH_CANCELLED);
    return send_script(s, &w, done, ctx);
}

static int redis_void(struct store *base, const kn_id id, uint32_t task, const struct store_record *r,
                      store_done done, void *ctx) {
    struct redis_store *s = (struct redis_store *)base;
    struct keys k;
    struct words w;
    uint8_t packed[STORE_RECORD_BYTES];
    keys_of(id, &k);
    store_record_pack(r, packed);
    const char *const keys[] = {k.batch, k.records};
    begin_script(&w, s, S_VOID, keys, 2);
    number(&w, task);
    bytes(&w, packed, sizeof packed);
    number(&w, KN_BATCH_DONE);
    number(&w, KN_BATCH_ACTIVE);
    return send_script(s, &w, done, ctx);
}

static int redis_charge(struct store *base, const kn_id id, uint32_t task, uint32_t charges,
                        const char *history) {
    struct redis_store *s = (struct redis_store *)base;
    struct keys k;
    struct words w;
    keys_of(id, &k);
    const char *const keys[] = {k.batch, k.charges};
    struct kn_buf value;
    kn_buf_init(&value, REDIS_CHARGE_BYTES_MAX);
    int rc = kn_buf_appendf(&value, "%u%s%s", charges, history[0] ? " " : "", history);
    begin_script(&w, s, S_PUT, keys, 2);
    number(&w, task);
    bytes(&w, value.data, value.len);
    if (rc == 0) rc = send_script(s, &w, NULL, NULL);
    kn_buf_fini(&value);
    return rc;
}

static int redis_model(struct store *base, const kn_digest sha256, uint64_t wall_ms, const void *data,
                       size_t len) {
    struct redis_store *s = (struct redis_store *)base;
    struct kn_buf value;
    struct words w;
    char hex[KN_SHA256_HEX];
    const char *const keys[] = {"kiln:models"};
    kn_hex(sha256, KN_SHA256_BYTES, hex);
    kn_buf_init(&value, REDIS_CHARGE_BYTES_MAX);
    int rc = kn_buf_appendf(&value, "%llu ", (unsigned long long)wall_ms);
    if (rc == 0) rc = kn_buf_append(&value, data, len);
    begin_script(&w, s, S_MODEL, keys, 1);
    word(&w, hex);
    bytes(&w, value.data, value.len);
    number(&w, KN_KNOWN_MODELS_MAX);
    if (rc == 0) rc = send_script(s, &w, NULL, NULL);
    kn_buf_fini(&value);
    return rc;
}

static int redis_state(struct store *base, const kn_id id, enum kn_batch_state state, int32_t priority,
                       uint64_t finished_wall_ms, bool retried, store_done done, void *ctx) {
    struct redis_store *s = (struct redis_store *)base;
    struct keys k;
    struct words w;
    keys_of(id, &k);
    const char *const keys[] = {k.batch, k.failures, k.charges};
    begin_script(&w, s, S_STATE, keys, 3);
    number(&w, state);
    number(&w, priority);
    number(&w, (long long)finished_wall_ms);
    number(&w, retried);
    return send_script(s, &w, done, ctx);
}

static int redis_remove(struct store *base, const kn_id id, store_done done, void *ctx) {
    struct redis_store *s = (struct redis_store *)base;
    struct keys k;
    struct words w;
    keys_of(id, &k);
    const char *const keys[] = {"kiln:batches", "kiln:staged", k.batch,    k.chunks,
                                k.names,        k.records,     k.failures, k.charges};
    begin_script(&w, s, S_REMOVE, keys, 8);
    word(&w, k.id);
    return send_script(s, &w, done, ctx);
}

static size_t redis_backlog(const struct store *base) {
    return ((const struct redis_store *)base)->waiting;
}

static uint64_t redis_silent_ms(const struct store *base, const char **why) {
    const struct redis_store *s = (const struct redis_store *)base;
    return s->link ? redis_link_silent_ms(s->link, why) : 0;
}

static void free_handle(uv_handle_t *h) {
    free(h);
}

/* Gives the lead back over a connection of its own, so that the next coordinator need not wait. */
static void give_back(struct redis_store *s) {
    struct kn_err err = {0};
    if (s->lost || s->waiting > 0 || connect_sync(s, &err) != 0) return;
    redisReply *r = ask_plain(s->sync, &err, 8, "EVALSHA", s->sha[S_RENEW], "2", "kiln:term", "kiln:leader",
                              s->term, s->me, "0");
    if (r) freeReplyObject(r);
}

static void redis_close(struct store *base) {
    struct redis_store *s = (struct redis_store *)base;
    give_back(s);
    if (s->renew) uv_close((uv_handle_t *)s->renew, free_handle);
    redis_link_destroy(s->link);
    if (s->sync) redisFree(s->sync);
    free(s);
}

static const struct store_ops redis_ops = {
    .load = redis_load,
    .begin = redis_begin,
    .chunk = redis_chunk,
    .seal = redis_seal,
    .name = redis_name,
    .commit = redis_commit,
    .fail = redis_fail,
    .void_record = redis_void,
    .charge = redis_charge,
    .model = redis_model,
    .state = redis_state,
    .remove = redis_remove,
    .backlog = redis_backlog,
    .silent_ms = redis_silent_ms,
    .close = redis_close,
};
