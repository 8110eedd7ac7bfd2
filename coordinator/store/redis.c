/* The store in Redis on the loop: its writes. See store.h; the layout of the keys stands in redis_script.c.
 *
 * Opening and reading back (redis_sync.c, redis_load.c) are synchronous, since there is nothing else to do yet;
 * from store_redis_start() on, everything goes through a link on the loop. */
#include "coordinator/store/redis.h"

#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/log.h"
#include "coordinator/store/redis_link.h"
#include "coordinator/store/redis_parts.h"

#define QUEUE_BYTES_MAX (512u << 20)
#define WENT_BACK_TEXT "it has gone back: it lacks what it had answered for"
#define REDIS_CHARGE_BYTES_MAX 65536 /* a task's charges with the story of its attempts */

struct redis_write {
    struct redis_store *s;
    store_done done; /* may be NULL */
    void *ctx;
};

static const struct store_ops redis_ops;

int store_redis_open(const struct store_redis_options *opt, struct store **out, struct kn_err *err) {
    struct redis_store *s = calloc(1, sizeof *s);
    if (!s) return kn_err_set(err, KN_ENOMEM, "Redis: out of memory");
    s->base.ops = &redis_ops;
    s->opt = *opt;
    if (!s->opt.lead_ms) s->opt.lead_ms = 10000;
    int rc = redis_open_sync(s, err);
    if (rc != 0) {
        if (s->sync) redisFree(s->sync);
        free(s);
        return rc;
    }
    kn_info("store_open redis=%s term=%llu count=%llu", s->address.shown, (unsigned long long)s->base.term,
            s->count);
    *out = &s->base;
    return 0;
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
    if (rc != KN_ETERM) s->count++; /* at least: one that was sent again may have counted twice */
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

/* A write that the store answers so stays in the queue: it was not carried out. */
static bool hold(void *ctx, const redisReply *r) {
    struct redis_store *s = ctx;
    if (r->type != REDIS_REPLY_INTEGER || r->integer != REDIS_WENT_BACK) return false;
    s->doubted = true;
    return true;
}

static void on_renewed(void *ctx, const redisReply *r) {
    struct redis_store *s = ctx;
    if (r->type != REDIS_REPLY_INTEGER) return;
    if (r->integer == KN_ETERM) lose(s, KN_ETERM, "another coordinator took the lead");
    if (r->integer > 0) s->count = (unsigned long long)r->integer;
    if (!hold(s, r) || !redis_link_is_up(s->link)) return;
    kn_error("store_went_back term=%llu count=%llu", (unsigned long long)s->base.term, s->count);
    redis_link_drop(s->link, WENT_BACK_TEXT);
}

static void renew_words(struct redis_store *s, enum script script, struct words *w, long long lifetime) {
    const char *const keys[] = {"kiln:leader"};
    begin_script(w, s, script, keys, 1);
    word(w, s->me);
    number(w, lifetime);
}

/* ---- trust: the settings, and a store that has gone back */

/* Drops a connection to a Redis that could lose what it is told: nothing is written, and so nothing is answered,
 * until its settings are mended. */
static void on_settings(void *ctx, const redisReply *r) {
    struct redis_store *s = ctx;
    struct kn_err err = {0};
    if (r->type != REDIS_REPLY_ARRAY || redis_check_settings(r, s->address.shown, &err) == 0) return;
    if (!s->doubted) kn_error("store_distrusted reason=\"%s\"", err.text);
    s->doubted = true;
    redis_link_drop(s->link, err.text);
}

/* Once a Redis has its settings back, what it was told meanwhile is on disk when its file is written anew. */
static void on_persistence(void *ctx, const redisReply *r) {
    struct redis_store *s = ctx;
    if (!s->doubted || r->type != REDIS_REPLY_STRING) return;
    if (strstr(r->str, "aof_rewrite_in_progress:1") || strstr(r->str, "aof_rewrite_scheduled:1"))
        redis_link_drop(s->link, "Redis is writing its append-only file anew");
}

static void ask_settings(struct redis_store *s) {
    struct words w = {0};
    if (s->opt.allow_volatile) return;
    word(&w, "CONFIG");
    word(&w, "GET");
    for (size_t i = 0; i < REDIS_SETTINGS; i++) word(&w, redis_settings[i].name);
    redis_link_direct(s->link, w.count, w.v, w.len, on_settings, s);
    w.count = 0;
    word(&w, "INFO");
    word(&w, "persistence");
    if (s->doubted) redis_link_direct(s->link, w.count, w.v, w.len, on_persistence, s);
}

static void on_renew(uv_timer_t *t) {
    struct redis_store *s = t->data;
    struct words w;
    redis_write_mark(s, false);
    if (!redis_link_is_up(s->link)) return;
    ask_settings(s);
    renew_words(s, S_RENEW, &w, s->opt.lead_ms);
    redis_link_direct(s->link, w.count, w.v, w.len, on_renewed, s);
}

/* The store takes the term again: now it is told everything, before what waits. */
static void on_repair(void *ctx, const redisReply *r) {
    struct redis_store *s = ctx;
    struct words w;
    if (r->type == REDIS_REPLY_INTEGER && r->integer == KN_ETERM)
        lose(s, KN_ETERM, "the store had gone back, and another coordinator took the lead");
    if (s->lost || r->type != REDIS_REPLY_INTEGER || r->integer != 0) {
        redis_link_drop(s->link, r->type == REDIS_REPLY_ERROR ? r->str : WENT_BACK_TEXT);
        return;
    }
    redis_link_front(s->link, true);
    int rc = s->base.back ? s->base.back(s->base.lost_ctx) : 0;
    begin_script(&w, s, S_REPAIRED, NULL, 0);
    if (rc == 0) rc = send_script(s, &w, NULL, NULL);
    redis_link_front(s->link, false);
    if (rc != 0) {
        kn_error("repair_failed code=%d", rc);
        redis_link_drop(s->link, WENT_BACK_TEXT); /* and again on the next connection */
        return;
    }
    s->doubted = false;
    redis_link_up(s->link);
}

/* The greeting of a new connection: settings, scripts, the lead; and the repair where it is needed. */

static void on_greeted(void *ctx, const redisReply *r) {
    struct redis_store *s = ctx;
    struct words w;
    on_renewed(ctx, r);
    if (s->lost) return;
    if (!s->doubted) {
        redis_link_up(s->link);
        return;
    }
    char secret[KN_SHA256_HEX];
    kn_hex(s->base.secret, sizeof s->base.secret, secret);
    renew_words(s, S_REPAIR, &w, s->opt.lead_ms);
    word(&w, secret);
    number(&w, STORE_FORMAT);
    redis_link_direct(s->link, w.count, w.v, w.len, on_repair, s);
}

static void on_script(void *ctx, const redisReply *r) {
    (void)ctx;
    if (r->type == REDIS_REPLY_ERROR) kn_error("redis_script_refused error=\"%s\"", r->str);
}

static void greet(void *ctx) {
    struct redis_store *s = ctx;
    struct words w = {0};
    ask_settings(s);
    for (int i = 0; i < S_COUNT; i++) {
        w.count = 0;
        word(&w, "SCRIPT");
        word(&w, "LOAD");
        word(&w, redis_script_text[i]);
        redis_link_direct(s->link, w.count, w.v, w.len, on_script, s);
    }
    renew_words(s, S_RENEW, &w, s->opt.lead_ms);
    redis_link_direct(s->link, w.count, w.v, w.len, on_greeted, s);
}

int store_redis_start(struct store *base, uv_loop_t *loop, struct kn_err *err) {
    struct redis_store *s = (struct redis_store *)base;
    struct redis_link_options opt = {
        .address = &s->address, .greet = greet, .hold = hold, .ctx = s, .bytes_max = QUEUE_BYTES_MAX};
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
    redis_keys_of(b->id, &k);
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
    redis_keys_of(id, &k);
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
    redis_keys_of(id, &k);
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
    redis_keys_of(id, &k);
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
    redis_keys_of(id, &k);
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
    redis_keys_of(id, &k);
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
    redis_keys_of(id, &k);
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
    redis_keys_of(id, &k);
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

static int redis_put(struct store *base, enum store_list list, const char *field, const char *value,
                     store_done done, void *ctx) {
    struct redis_store *s = (struct redis_store *)base;
    struct words w;
    const char *const keys[] = {redis_list_key(list)};
    begin_script(&w, s, S_LIST, keys, 1);
    word(&w, field);
    word(&w, value);
    return send_script(s, &w, done, ctx);
}

static int redis_enrol(struct store *base, const char *key, const char *value, const char *token,
                       store_done done, void *ctx) {
    struct redis_store *s = (struct redis_store *)base;
    struct words w;
    const char *const keys[] = {redis_list_key(STORE_KEYS), redis_list_key(STORE_TOKENS)};
    begin_script(&w, s, S_ENROL, keys, 2);
    word(&w, key);
    word(&w, value);
    word(&w, token);
    return send_script(s, &w, done, ctx);
}

static int redis_state(struct store *base, const kn_id id, enum kn_batch_state state, int32_t priority,
                       uint64_t finished_wall_ms, bool retried, store_done done, void *ctx) {
    struct redis_store *s = (struct redis_store *)base;
    struct keys k;
    struct words w;
    redis_keys_of(id, &k);
    const char *const keys[] = {k.batch, k.failures, k.charges};
    begin_script(&w, s, S_STATE, keys, 3);
    number(&w, state);
    number(&w, priority);
    number(&w, (long long)finished_wall_ms);
    number(&w, retried);
    return send_script(s, &w, done, ctx);
}

/* Before what waits: at the limit of Redis' memory nothing else is taken, and these make room. What waits for a batch
 * that is gone is answered so. */
static int send_front(struct redis_store *s, const struct words *w, store_done done, void *ctx) {
    redis_link_front(s->link, true);
    int rc = send_script(s, w, done, ctx);
    redis_link_front(s->link, false);
    return rc;
}

static int redis_remove(struct store *base, const kn_id id, bool now, store_done done, void *ctx) {
    struct redis_store *s = (struct redis_store *)base;
    struct keys k;
    struct words w;
    redis_keys_of(id, &k);
    const char *const keys[] = {"kiln:batches", "kiln:staged", "kiln:tombs", k.tomb,     k.records,
                                k.batch,        k.chunks,      k.names,      k.failures, k.charges};
    begin_script(&w, s, S_REMOVE, keys, 10);
    word(&w, k.id);
    number(&w, now);
    return send_front(s, &w, done, ctx);
}

static int redis_bury(struct store *base, const kn_id id, size_t records, store_done done, void *ctx) {
    struct redis_store *s = (struct redis_store *)base;
    struct keys k;
    struct words w;
    redis_keys_of(id, &k);
    const char *const keys[] = {"kiln:tombs", k.tomb};
    begin_script(&w, s, S_BURY, keys, 2);
    word(&w, k.id);
    number(&w, (long long)records * STORE_RECORD_BYTES);
    return send_front(s, &w, done, ctx);
}

static int redis_confirm(struct store *base, store_done done, void *ctx) {
    struct redis_store *s = (struct redis_store *)base;
    struct words w;
    begin_script(&w, s, S_CONFIRM, NULL, 0);
    return send_front(s, &w, done, ctx);
}

static int redis_records(struct store *base, const kn_id id, uint32_t from, const void *records,
                         size_t count) {
    struct redis_store *s = (struct redis_store *)base;
    struct keys k;
    struct words w;
    redis_keys_of(id, &k);
    const char *const keys[] = {k.batch, k.records};
    begin_script(&w, s, S_RECORDS, keys, 2);
    number(&w, from);
    bytes(&w, records, count * STORE_RECORD_BYTES);
    return send_script(s, &w, NULL, NULL);
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
    if (s->lost || s->waiting > 0 || redis_connect_sync(s, &err) != 0) return;
    char term[48];
    snprintf(term, sizeof term, "%llu %llu", (unsigned long long)s->base.term, s->count);
    redisReply *r = redis_ask_plain(s->sync, &err, 8, "EVALSHA", s->sha[S_RENEW], "2", "kiln:term",
                                    "kiln:leader", term, s->me, "0");
    if (r) freeReplyObject(r);
}

static void redis_close(struct store *base) {
    struct redis_store *s = (struct redis_store *)base;
    redis_write_mark(s, false);
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
    .bury = redis_bury,
    .confirm = redis_confirm,
    .records = redis_records,
    .put = redis_put,
    .enrol = redis_enrol,
    .backlog = redis_backlog,
    .silent_ms = redis_silent_ms,
    .close = redis_close,
};
