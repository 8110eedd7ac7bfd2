/* The parts of the store in Redis, and what they share:
 *
 *     redis_script.c   the layout of the keys, and the scripts that write
 *     redis_sync.c     opening: the connection before the loop, version, settings, the lead
 *     redis_load.c     reading back, over that connection
 *     redis.c          on the loop: the writes
 *     redis_link.c     the connection that they go through */
#ifndef KILN_COORDINATOR_STORE_REDIS_PARTS_H
#define KILN_COORDINATOR_STORE_REDIS_PARTS_H

#include <stdio.h>
#include <string.h>

#include "coordinator/store/redis.h"
#include "coordinator/store/redis_link.h"

struct redisReply; /* hiredis' */
struct redisContext;

#define ARGS_MAX 20
#define REDIS_WENT_BACK                                                                                      \
    (-99) /* a script's answer: the store has gone back. It leaves these files as no code */

enum script {
    S_LEAD,
    S_RENEW,
    S_REPAIR,
    S_REPAIRED,
    S_RECORDS,
    S_BEGIN,
    S_CHUNK,
    S_SEAL,
    S_PUT,
    S_MODEL,
    S_LIST,
    S_ENROL,
    S_COMMIT,
    S_FAIL,
    S_VOID,
    S_STATE,
    S_REMOVE,
    S_BURY,
    S_CONFIRM,
    S_COUNT
};
extern const char *const redis_script_text[S_COUNT];

struct redis_store {
    struct store base;
    struct store_redis_options opt;
    struct kn_redis_address address;
    char me[256];
    unsigned long long count;  /* writes that the store has had, at least */
    unsigned long long marked; /* …by the mark */
    bool
        doubted; /* it has gone back, or had other settings: it is told everything again before the queue goes on */
    char sha[S_COUNT][41];
    struct redisContext *sync; /* until store_load() is through */
    struct redis_link *link;
    uv_timer_t *renew; /* owns; a handle of its own, closed after this struct is gone */
    size_t waiting;
    bool lost;
};

/* ---- keys */

enum { KEY_MAX = 64 };
struct keys {
    char batch[KEY_MAX], chunks[KEY_MAX], names[KEY_MAX], records[KEY_MAX], failures[KEY_MAX],
        charges[KEY_MAX], tomb[KEY_MAX];
    char id[KN_UUID_TEXT];
};

void redis_keys_of(const kn_id id, struct keys *k);

static inline const char *redis_list_key(enum store_list list) {
    return list == STORE_KEYS ? "kiln:keys" : "kiln:tokens";
}

/* ---- a command's words */

struct words {
    const char *v[ARGS_MAX];
    size_t len[ARGS_MAX];
    char numbers[9][48];
    int count, number_count;
};

static inline void word(struct words *w, const char *s) {
    w->v[w->count] = s;
    w->len[w->count++] = strlen(s);
}

static inline void bytes(struct words *w, const void *data, size_t len) {
    w->v[w->count] = data;
    w->len[w->count++] = len;
}

static inline void number(struct words *w, long long n) {
    char *p = w->numbers[w->number_count++];
    snprintf(p, sizeof w->numbers[0], "%lld", n);
    word(w, p);
}

/* The caller's term and the count that the store must have: ARGV[1] of every script under a term. */
static inline void under_term(struct words *w, const struct redis_store *s) {
    char *p = w->numbers[w->number_count++];
    snprintf(p, sizeof w->numbers[0], "%llu %llu", (unsigned long long)s->base.term, s->count);
    word(w, p);
}

/* EVALSHA script with `keys` keys, the first of them kiln:term. */
static inline void begin_script(struct words *w, const struct redis_store *s, enum script script,
                                const char *const *keys, int count) {
    w->count = w->number_count = 0;
    word(w, "EVALSHA");
    word(w, s->sha[script]);
    number(w, count + 1);
    word(w, "kiln:term");
    for (int i = 0; i < count; i++) word(w, keys[i]);
    under_term(w, s);
}

/* ---- redis_sync.c */

/* A command over the connection before the loop. */
struct redisReply *redis_ask(struct redisContext *c, const struct words *w);
/* One command of plain words; NULL or an error reply: err says so. */
struct redisReply *redis_ask_plain(struct redisContext *c, struct kn_err *err, int count, ...);
KN_MUST_USE int redis_connect_sync(struct redis_store *s, struct kn_err *err);
/* Connects, checks, loads the scripts and takes the lead: all of store_redis_open(). */
KN_MUST_USE int redis_open_sync(struct redis_store *s, struct kn_err *err);

/* The settings that make writes durable, and what they must be. */
#define REDIS_SETTINGS 4
struct redis_setting {
    const char *name, *want;
};
extern const struct redis_setting redis_settings[REDIS_SETTINGS];
/* Leaves in the farm's folder how far the store had come, for whoever opens it next. */
void redis_write_mark(struct redis_store *s, bool durable);
/* Compares the answer to CONFIG GET with them. */
KN_MUST_USE int redis_check_settings(const struct redisReply *r, const char *address, struct kn_err *err);

/* ---- redis_load.c */

int redis_load(struct store *base, const struct store_reader *rd, struct kn_err *err);

#endif
