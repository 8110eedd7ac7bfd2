/* Reading the store in Redis back. See redis_parts.h. */
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/store/redis_parts.h"

#define CHUNKS_A_READ 32
#define RECORDS_A_READ 16384

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
        redisReply *r = redis_ask_plain(s->sync, err, 4, "GETRANGE", k->records, a, b);
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
    redisReply *r = redis_ask_plain(s->sync, err, 2, "HGETALL", key);
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
    if (kn_uuid_parse(text, id) != 0) { /* it can be named to nobody, and no batch of kiln's is lost by it */
        kn_error("batch_id_unreadable key=%s text=\"%.64s\"", sealed ? "kiln:batches" : "kiln:staged", text);
        return 0;
    }
    redis_keys_of(id, &k);
    redisReply *r = redis_ask_plain(s->sync, err, 9, "HMGET", k.batch, "begin", "tasks", "chunks", "state",
                                    "priority", "created", "finished");
    if (!r) return err->code;
    struct store_batch b = {.sealed = sealed};
    int rc = r->type != REDIS_REPLY_ARRAY || r->elements != 7 ? odd(err, k.batch)
             : is_text(r->element[0]) && is_text(r->element[1])
                 ? 0
                 : kn_err_set(err, KN_ECORRUPT, "Redis: %s is not there, or lacks a part", k.batch);
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
    if (r) freeReplyObject(r);
    if (rc == 0) rc = load_chunks(s, &k, b.chunks, rd, err);
    if (rc == 0) rc = load_hash(s, k.names, each_name, rd, err);
    if (rc == 0) rc = load_records(s, &k, b.tasks, rd, err);
    if (rc == 0) rc = load_hash(s, k.failures, each_failure, rd, err);
    if (rc == 0) rc = load_hash(s, k.charges, each_charge, rd, err);
    if (rc == 0) rc = rd->batch_end(rd->ctx, err);
    if (rc == 0) return 0;
    if (!store_is_batchs_own(rc)) return kn_err_prefix(err, "batch %s", text);
    struct kn_err why = *err;
    return rd->aside(rd->ctx, id, sealed, &why, err);
}

static int renew_sync(struct redis_store *s, struct kn_err *err) {
    char lifetime[16], term[48];
    snprintf(lifetime, sizeof lifetime, "%u", s->opt.lead_ms);
    snprintf(term, sizeof term, "%llu %llu", (unsigned long long)s->base.term, s->count);
    redisReply *r = redis_ask_plain(s->sync, err, 8, "EVALSHA", s->sha[S_RENEW], "2", "kiln:term",
                                    "kiln:leader", term, s->me, lifetime);
    if (!r) return err->code;
    int rc = r->type != REDIS_REPLY_INTEGER  ? KN_EIO
             : r->integer >= 0               ? 0
             : r->integer == REDIS_WENT_BACK ? KN_EIO
                                             : (int)r->integer;
    freeReplyObject(r);
    return rc == 0 ? 0 : kn_err_set(err, rc, "Redis: %s", kn_err_words(rc));
}

static int load_list(struct redis_store *s, bool sealed, const struct store_reader *rd, struct kn_err *err) {
    redisReply *r = sealed ? redis_ask_plain(s->sync, err, 4, "ZRANGE", "kiln:batches", "0", "-1")
                           : redis_ask_plain(s->sync, err, 2, "SMEMBERS", "kiln:staged");
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

static int load_tomb(struct redis_store *s, const char *text, bool now, const struct store_reader *rd,
                     struct kn_err *err) {
    kn_id id;
    struct keys k;
    if (kn_uuid_parse(text, id) != 0) return odd(err, "kiln:tombs");
    redis_keys_of(id, &k);
    for (uint64_t from = 0;; from += RECORDS_A_READ) {
        char a[24], b[24];
        snprintf(a, sizeof a, "%llu", (unsigned long long)from * STORE_RECORD_BYTES);
        snprintf(b, sizeof b, "%llu", (unsigned long long)(from + RECORDS_A_READ) * STORE_RECORD_BYTES - 1);
        redisReply *r = redis_ask_plain(s->sync, err, 4, "GETRANGE", k.tomb, a, b);
        if (!r) return err->code;
        int rc = is_text(r) ? 0 : odd(err, k.tomb);
        size_t n = rc == 0 ? r->len / STORE_RECORD_BYTES : 0;
        if (rc == 0 && (n > 0 || from == 0))
            rc = rd->tomb(rd->ctx, id, now, (const uint8_t(*)[STORE_RECORD_BYTES])r->str, n, err);
        freeReplyObject(r);
        if (rc != 0 || n < RECORDS_A_READ) return rc;
    }
}

/* A tombstone that cannot be read costs the room of its objects alone: the sweep finds them. */
static int load_tombs(struct redis_store *s, const struct store_reader *rd, struct kn_err *err) {
    redisReply *r = redis_ask_plain(s->sync, err, 2, "HGETALL", "kiln:tombs");
    if (!r) return err->code;
    int rc = r->type == REDIS_REPLY_ARRAY ? 0 : odd(err, "kiln:tombs");
    for (size_t i = 0; rc == 0 && i + 1 < r->elements; i += 2) {
        rc = is_text(r->element[i])
                 ? load_tomb(s, r->element[i]->str, number_of(r->element[i + 1]) != 0, rd, err)
                 : odd(err, "kiln:tombs");
        if (rc == 0 || !store_is_batchs_own(rc) || rc == KN_ENOMEM) continue;
        kn_error("tomb_unreadable reason=\"%s\"", err->text);
        rc = 0;
    }
    if (r) freeReplyObject(r);
    if (rc == 0 || !store_is_batchs_own(rc) || rc == KN_ENOMEM) return rc;
    kn_error("tombs_unreadable reason=\"%s\"", err->text);
    return 0;
}

static int load_models(struct redis_store *s, const struct store_reader *rd, struct kn_err *err) {
    redisReply *r = redis_ask_plain(s->sync, err, 2, "HGETALL", "kiln:models");
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

static int load_entries(struct redis_store *s, enum store_list list, const struct store_reader *rd,
                        struct kn_err *err) {
    redisReply *r = redis_ask_plain(s->sync, err, 2, "HGETALL", redis_list_key(list));
    if (!r) return err->code;
    int rc = r->type == REDIS_REPLY_ARRAY ? 0 : odd(err, redis_list_key(list));
    for (size_t i = 0; rc == 0 && i + 1 < r->elements; i += 2)
        if (is_text(r->element[i]) && is_text(r->element[i + 1]))
            rc = rd->entry(rd->ctx, list, r->element[i]->str, r->element[i + 1]->str, err);
    freeReplyObject(r);
    return rc;
}

int redis_load(struct store *base, const struct store_reader *rd, struct kn_err *err) {
    struct redis_store *s = (struct redis_store *)base;
    int rc = load_list(s, true, rd, err);
    if (rc == 0) rc = load_list(s, false, rd, err);
    if (rc == 0 && rd->tomb) rc = load_tombs(s, rd, err);
    if (rc == 0 && rd->model) rc = load_models(s, rd, err);
    if (rc == 0 && rd->entry) rc = load_entries(s, STORE_KEYS, rd, err);
    if (rc == 0 && rd->entry) rc = load_entries(s, STORE_TOKENS, rd, err);
    redisFree(s->sync); /* from here on everything goes over the loop */
    s->sync = NULL;
    return rc;
}
