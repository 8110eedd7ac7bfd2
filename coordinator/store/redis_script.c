/* The keys and the scripts of the store in Redis.
 *
 * The keys; <id> is the batch's UUID as text, and numbers are decimal text unless said otherwise.
 *
 *     kiln:format     the layout of all this (STORE_FORMAT): written at the first start, compared at each
 *     kiln:term       the term of the coordinator that leads; who takes the lead raises it by one (INCR)
 *     kiln:count      counts the writes of all coordinators: a number that is lower than before says that the store
 *                     has gone back (FLUSHALL, an older copy, a file that was cut)
 *     kiln:secret     the farm's secret in hex, drawn at the first start: what tickets are made with (ticket.h)
 *     kiln:repairing  there while a coordinator writes again what a store that went back has lost
 *     kiln:leader     who that is, with an expiry that it renews: a second one does not start beside it
 *     kiln:seq        counts the sealed batches
 *     kiln:models     hash: SHA-256 of a model that a worker announced -> "date in ms" and a blank, and what the
 *                     caller tells of it
 *     kiln:keys       hash: public key in hex -> whose it is (coordinator/keys.h)
 *     kiln:tokens     hash: id in hex -> uses that are left, a blank, and what it is good for: of its secret a digest alone
 *     kiln:batches    sorted set: ids of the sealed batches, by that count
 *     kiln:staged     set: ids of the batches that are being submitted and not sealed
 *
 *     kiln:tombs      hash: id of a removed batch whose objects have not all gone yet -> 1 when they are to be
 *                     deleted at once, else 0
 *     kiln:t:<id>     its records, as kiln:b:<id>:r had them
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
 * them answers NOSCRIPT, and then a new connection is made (redis_link.h). */
#include "coordinator/store/redis_parts.h"

#include <stdio.h>

/* The names that every script may use: the codes of base/err.h, and the size of a record. */
#define LUA_LOCAL(name, value, words) "local " #name " = " #value "\n"
#define LUA_LOCAL_OF(name, macro) LUA_LOCAL(name, macro, "")
#define NAMES                                                                                                \
    KN_ERR_TABLE(LUA_LOCAL)                                                                                  \
    LUA_LOCAL_OF(RECORD_BYTES, STORE_RECORD_BYTES) LUA_LOCAL_OF(WENT_BACK, REDIS_WENT_BACK)

/* The first line of a script; the second kind is carried out at the limit of memory too: it frees some, or keeps
 * the lead. */
#define LUA "#!lua\n" NAMES
#define LUA_AT_OOM "#!lua flags=allow-oom\n" NAMES

/* The beginning of every script that writes under a term: KEYS[1] is kiln:term, and ARGV[1] the caller's term with
 * the count of writes that the store must have had. A term is never lowered and the count neither, but by a store
 * that has gone back. */
#define UNDER_TERM                                                                                           \
    "local term, least = ARGV[1]:match('^(%d+) (%d+)$')\n"                                                   \
    "local now = redis.call('GET', KEYS[1])\n"                                                               \
    "if now ~= term then\n"                                                                                  \
    "  if now and tonumber(now) > tonumber(term) then return KN_ETERM end\n"                                 \
    "  return WENT_BACK\n"                                                                                   \
    "end\n"                                                                                                  \
    "if tonumber(redis.call('GET', 'kiln:count') or '0') < tonumber(least) then return WENT_BACK end\n"      \
    "local count = redis.call('INCR', 'kiln:count')\n"
#define FENCE LUA UNDER_TERM
#define FENCE_AT_OOM LUA_AT_OOM UNDER_TERM

const char *const redis_script_text[S_COUNT] = {
    /* KEYS term, leader; ARGV me, lifetime in ms, whom I may replace ("" for nobody), term and count that the store
     * must have had (0 and 0: any). Returns the new term, or who leads. */
    [S_LEAD] = LUA_AT_OOM
    "if ARGV[4] ~= '0' and (tonumber(redis.call('GET', KEYS[1]) or '0') < tonumber(ARGV[4])\n"
    "  or tonumber(redis.call('GET', 'kiln:count') or '0') < tonumber(ARGV[5])\n"
    "  or redis.call('EXISTS', 'kiln:repairing') == 1) then return WENT_BACK end\n"
    "local who = redis.call('GET', KEYS[2])\n"
    "if who and who ~= ARGV[1] and who ~= ARGV[3] then return who end\n"
    "redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])\n"
    "redis.call('DEL', 'kiln:repairing')\n"
    "return redis.call('INCR', KEYS[1])\n",
    /* KEYS term, leader; ARGV term, me, lifetime in ms: 0 gives the lead back. Returns the count. */
    [S_RENEW] = FENCE_AT_OOM
    "if ARGV[3] == '0' then redis.call('DEL', KEYS[2]) return count end\n"
    "redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])\n"
    "return count\n",
    /* The store has gone back, and who leads begins to write again what it has lost: not where another has taken the
     * lead meanwhile. KEYS term, leader; ARGV term and count, me, lifetime in ms, the secret. */
    [S_REPAIR] = LUA
    "local term, least = ARGV[1]:match('^(%d+) (%d+)$')\n"
    "local who, now = redis.call('GET', KEYS[2]), redis.call('GET', KEYS[1])\n"
    "if (who and who ~= ARGV[2]) or (now and tonumber(now) > tonumber(term)) then return KN_ETERM end\n"
    "redis.call('SET', 'kiln:repairing', ARGV[2])\n"
    "redis.call('SET', KEYS[1], term)\n"
    "redis.call('SET', 'kiln:secret', ARGV[4])\n"
    "redis.call('SET', 'kiln:format', ARGV[5], 'NX')\n"
    "redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])\n"
    "if tonumber(redis.call('GET', 'kiln:count') or '0') < tonumber(least) then\n"
    "  redis.call('SET', 'kiln:count', least)\n"
    "end\n"
    "return KN_OK\n",
    /* KEYS term; ARGV term */
    [S_REPAIRED] = FENCE
    "redis.call('DEL', 'kiln:repairing')\n"
    "return KN_OK\n",
    /* Records that the store may have or not: those that it has stay. KEYS term, batch, records; ARGV term, number of
     * the first, the records */
    [S_RECORDS] = FENCE
    "if redis.call('HEXISTS', KEYS[2], 'seq') == 0 then return KN_EGONE end\n"
    "local at = tonumber(ARGV[2]) * RECORD_BYTES\n"
    "local old = redis.call('GETRANGE', KEYS[3], at, at + #ARGV[3] - 1)\n"
    "for i = 0, #ARGV[3] / RECORD_BYTES - 1 do\n"
    "  local last = (i + 1) * RECORD_BYTES\n"
    "  if (old:byte(last) or 0) == 0 and ARGV[3]:byte(last) ~= 0 then\n"
    "    redis.call('SETRANGE', KEYS[3], at + i * RECORD_BYTES, ARGV[3]:sub(i * RECORD_BYTES + 1, last))\n"
    "  end\n"
    "end\n"
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
    /* KEYS term, list; ARGV term, field, value: "" takes the field away, and no field the list */
    [S_LIST] = FENCE_AT_OOM
    "if ARGV[2] == '' then redis.call('DEL', KEYS[2])\n"
    "elseif ARGV[3] == '' then redis.call('HDEL', KEYS[2], ARGV[2])\n"
    "else redis.call('HSET', KEYS[2], ARGV[2], ARGV[3]) end\n"
    "return KN_OK\n",
    /* KEYS term, keys, tokens; ARGV term, key, what is told of it, token */
    [S_ENROL] = FENCE
    "if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 1 then return KN_EEXIST end\n"
    "local uses, rest = (redis.call('HGET', KEYS[3], ARGV[4]) or ''):match('^(%d+)( .*)$')\n"
    "if not uses or tonumber(uses) < 1 then return KN_EGONE end\n"
    "redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])\n"
    "redis.call('HSET', KEYS[3], ARGV[4], string.format('%d', tonumber(uses) - 1) .. rest)\n"
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
    /* KEYS term, batches, staged, tombs, tomb, records, then the batch's others; ARGV term, id, 1 for at once.
     * The same id may have been removed before, with its objects not gone yet. */
    [S_REMOVE] = FENCE_AT_OOM
    "redis.call('ZREM', KEYS[2], ARGV[2])\n"
    "redis.call('SREM', KEYS[3], ARGV[2])\n"
    "if redis.call('EXISTS', KEYS[6]) == 1 then\n"
    "  redis.call('HSET', KEYS[4], ARGV[2], ARGV[3])\n"
    "  if redis.call('EXISTS', KEYS[5]) == 0 then\n"
    "    redis.call('RENAME', KEYS[6], KEYS[5])\n"
    "  else\n"
    "    redis.call('APPEND', KEYS[5], redis.call('GET', KEYS[6]))\n"
    "    redis.call('UNLINK', KEYS[6])\n"
    "  end\n"
    "end\n"
    "for i = 7, #KEYS do redis.call('UNLINK', KEYS[i]) end\n"
    "return KN_OK\n",
    /* KEYS term, tombs, tomb; ARGV term, id, bytes that it has */
    [S_BURY] = FENCE_AT_OOM
    "if redis.call('STRLEN', KEYS[3]) > tonumber(ARGV[3]) then return KN_ESTATE end\n"
    "redis.call('HDEL', KEYS[2], ARGV[2])\n"
    "redis.call('UNLINK', KEYS[3])\n"
    "return KN_OK\n",
    /* KEYS term; ARGV term */
    [S_CONFIRM] = FENCE_AT_OOM "return KN_OK\n",
};

void redis_keys_of(const kn_id id, struct keys *k) {
    kn_uuid_format(id, k->id);
    snprintf(k->batch, KEY_MAX, "kiln:b:%s", k->id);
    snprintf(k->chunks, KEY_MAX, "kiln:b:%s:c", k->id);
    snprintf(k->names, KEY_MAX, "kiln:b:%s:n", k->id);
    snprintf(k->records, KEY_MAX, "kiln:b:%s:r", k->id);
    snprintf(k->failures, KEY_MAX, "kiln:b:%s:f", k->id);
    snprintf(k->charges, KEY_MAX, "kiln:b:%s:a", k->id);
    snprintf(k->tomb, KEY_MAX, "kiln:t:%s", k->id);
}
