/* Every message, each field once. The tables below make the structs here, the encoder and the decoder
 * (codec.c), and what fills and compares messages in tests (tests/unit/proto_messages.c).
 *
 * A row is F(kind, name, …). The name is the field's in kiln.proto and the member's in the struct; kiln.proto
 * adds nothing but its number. The kind says what the member is, and what a peer may send:
 *
 *     U32 U64 S32 S64 BOOL (name)         uint32_t uint64_t int int64_t bool; any value
 *     FLOAT (name)                        float, finite
 *     RANGE (name, min, max)              uint32_t from min to max
 *     RANGE64 (name, min, max)            uint64_t from min to max
 *     TASK (name)                         uint32_t, the number of a task in its batch
 *     ERROR (name)                        int, negative: a KN_E… of base/err.h
 *     ENUM (name, type, first, last)      enum type
 *     STATE (name, type, first, last)     enum type too, of a reply: a newer peer may send any value, and the
 *                                         receiver shows those that it does not know as their number
 *     TEXT (name, max)                    const char *, UTF-8 of at most max bytes; NULL is sent as ""
 *     NAME (name, max)                    the same, and not empty
 *     BYTES (name, len)                   const uint8_t *name and size_t len
 *     ID DIGEST (name)                    kn_id, kn_digest
 *     CLAMP (name, min, max)              uint32_t; a value out of range is taken for the nearest in it
 *     CUT (name, max)                     const char *; what is too long is cut, what is no UTF-8 is ""
 *     NAMES (name, count, max)            const char **name and size_t count; those that are too long or no
 *                                         UTF-8 are left out, and those behind the max-th
 *     ID_OR_NONE (name, has)              bool has and kn_id name; nothing is sent when has is false
 *     DIGEST_OR_NONE (name, has)          the same with a kn_digest
 *     ID_IF (name, condition)             kn_id, sent when the condition holds of the struct s, missed then
 *     DIGEST_IF (name, condition)         kn_digest, the same; not looked at otherwise
 *     PART (part, name)                   struct kn_part, must be there
 *     PART_OR_NONE (part, name)           struct kn_part; all zero is not sent
 *     LIST (part, name, v, count, max)    struct kn_part *v and size_t count, at most max
 *     KNOWN (part, name, v, count, max)   the same; elements that cannot be read are left out, and those
 *                                         behind the max-th
 *     NUMBERS (name, count, max)          uint32_t *name and size_t count, at most max
 *     MODELS_ASKED (name, count, max)     struct kn_model_info *name and size_t count, from 1 to max, of which
 *                                         only name or hash are given
 *     TASKS (name, count, max)            struct kn_task *name and size_t count, from 1 to max
 *     TASK_NUMBERS (name, tasks, count)   uint32_t *name: the number of each of tasks
 *
 * Rows are decoded in their order; a condition names members of rows above its own. struct kn_task and struct
 * kn_model_info are base's: the codec writes and reads them by hand. */
#ifndef KN_PROTO_MESSAGES_H
#define KN_PROTO_MESSAGES_H

#include <stdbool.h>
#include <stdint.h>
#include "base/features.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/spec.h"
#include "base/states.h"

enum kn_batch_verb {
    KN_VERB_CANCEL = 1,
    KN_VERB_PAUSE = 2,
    KN_VERB_RESUME = 3,
    KN_VERB_RETRY = 4,    /* failed tasks again */
    KN_VERB_REMOVE = 5,   /* a finished batch leaves; its objects are collected */
    KN_VERB_PRIORITY = 6, /* argument */
};

/* clang-format off */

/* ---- parts of messages */

/* P(fields, struct and list, name in kiln.proto) */
#define KN_PART_TABLE(P)                             \
    P(HELD_SHARD,    held_shard,    HeldShard)       \
    P(READINGS,      readings,      Readings)        \
    P(BATCH_STATUS,  batch_status,  BatchStatus)     \
    P(WORKER_STATUS, worker_status, WorkerStatus)    \
    P(RESULT,        result,        Result)         \
    P(ATTEMPT,       attempt,       Attempt)        \
    P(TOKEN_INFO,    token_info,    TokenInfo)      \
    P(KEY_INFO,      key_info,      KeyInfo)

#define KN_FIELDS_HELD_SHARD(F)                      \
    F(ID,      batch)                                \
    F(U64,     shard)                                \
    F(U64,     term)                                 \
    F(NUMBERS, tasks, task_count, KN_SHARD_TASKS_MAX) /* those not yet acknowledged */ \
    F(BYTES,   ticket, ticket_len) /* of the grant */

#define KN_FIELDS_READINGS(F) /* of a device; 0: not known */ \
    F(RANGE64, memory_used,   0, KN_DEVICE_BYTES_MAX) \
    F(RANGE64, memory_total,  0, KN_DEVICE_BYTES_MAX) \
    F(RANGE,   temperature_c, 0, KN_DEVICE_C_MAX)    \
    F(RANGE,   power_mw,      0, KN_DEVICE_MW_MAX)   \
    F(RANGE,   sm_mhz,        0, KN_DEVICE_MHZ_MAX)  \
    F(RANGE,   memory_mhz,    0, KN_DEVICE_MHZ_MAX)

#define KN_FIELDS_BATCH_STATUS(F)                    \
    F(ID,    batch)                                  \
    F(TEXT,  name,    KN_NAME_MAX)                   \
    F(TEXT,  request, KN_FRAME_BYTES_MAX)            \
    F(STATE, state, kn_batch_state, KN_BATCH_ACTIVE, KN_BATCH_ASIDE) \
    F(U32,   total)                                  \
    F(U32,   done)                                   \
    F(U32,   failed)                                 \
    F(U32,   cancelled)                              \
    F(U32,   queued)                                 \
    F(U32,   running)                                \
    F(FLOAT, images_per_s)      /* over the last 15 s */ \
    F(FLOAT, images_per_s_mean) /* over the batch */ \
    F(S64,   eta_ms)            /* -1: unknown */    \
    F(U64,   created_wall_ms)                        \
    F(U64,   finished_wall_ms)                       \
    F(S32,   priority)                               \
    F(STATE, wait, kn_wait, KN_WAIT_NONE, KN_WAIT_FEATURE) \
    F(TEXT,  wait_text, KN_WAIT_TEXT_MAX) /* the same in words, with what to do; "" when nothing waits */ \
    F(FLOAT, progress)          /* 0 to 1: ended images, and the steps done of those that run */ \
    F(FLOAT, steps_per_s)       /* denoising steps of all its images, over the last 15 s */ \
    F(TEXT,  loading, KN_NAME_MAX) /* the model that a worker loads for it; "" for none */ \
    F(U64,   loading_bytes)                          \
    F(BOOL,  held)              /* wait is HELD, and none of its workers is likely to come back */

#define KN_FIELDS_WORKER_STATUS(F)                   \
    F(TEXT,  worker,      KN_NAME_MAX)               \
    F(TEXT,  host,        KN_HOST_MAX)               \
    F(TEXT,  device,      KN_DEVICE_MAX)             \
    F(TEXT,  device_uuid, KN_DEVICE_MAX)             \
    F(TEXT,  backend,     KN_BACKEND_MAX)            \
    F(TEXT,  model,       KN_NAME_MAX)               \
    F(TEXT,  engine,      KN_NAME_MAX)               \
    F(STATE, state, kn_worker_state, KN_WORKER_IDLE, KN_WORKER_LOST) \
    F(ID_OR_NONE, batch, has_batch)                  \
    F(U32,   step)                                   \
    F(U32,   steps)                                  \
    F(U32,   tasks)       /* images in what it renders */ \
    F(U32,   done)                                   \
    F(U32,   failed)                                 \
    F(U32,   last_seen_ms)                           \
    F(U32,   pid)                                    \
    F(FLOAT, images_per_s)                           \
    F(PART_OR_NONE, readings, readings)              \
    F(STATE, phase, kn_worker_phase, KN_PHASE_NONE, KN_PHASE_LOADING) \
    F(TEXT,  loading, KN_NAME_MAX) /* the model; "" unless it loads one */ \
    F(U64,   loading_bytes)                          \
    F(FLOAT, steps_per_s)                            \
    F(TEXT,  hold_reason, KN_REASON_MAX) /* why it is held; "" when it is not */

#define KN_FIELDS_RESULT(F)                          \
    F(TASK, index)                                   \
    F(U32,  attempt)                                 \
    F(U32,  render_ms)                               \
    F(STATE, status, kn_result_status, KN_RESULT_DONE, KN_RESULT_CANCELLED) \
    F(DIGEST_IF, sha256,        s->status == KN_RESULT_DONE) \
    F(DIGEST_IF, pixels_sha256, s->status == KN_RESULT_DONE) \
    F(TEXT, worker,  KN_NAME_MAX)                    \
    F(TEXT, backend, KN_BACKEND_MAX)                 \
    F(TEXT, engine,  KN_NAME_MAX)                    \
    F(TEXT, error,   KN_REASON_MAX)                  \
    F(BOOL, flat)

#define KN_FIELDS_ATTEMPT(F) /* of a task, that did not bring its picture */ \
    F(TASK, task)                                    \
    F(U64,  wall_ms)        /* when it ended */      \
    F(S32,  code)                                    \
    F(BOOL, charged)                                 \
    F(TEXT, worker,  KN_NAME_MAX)                    \
    F(TEXT, backend, KN_BACKEND_MAX)                 \
    F(TEXT, reason,  KN_ATTEMPT_REASON_MAX)

#define KN_FIELDS_TOKEN_INFO(F)                      \
    F(BYTES, id, id_len)                             \
    F(STATE, role, kn_role, KN_ROLE_WORKER, KN_ROLE_READ) \
    F(TEXT,  name, KN_NAME_MAX)                      \
    F(BOOL,  ephemeral)                              \
    F(U64,   made_wall_ms)                           \
    F(U64,   expires_wall_ms) /* 0: never */         \
    F(U32,   uses)            /* that are left */

#define KN_FIELDS_KEY_INFO(F)                        \
    F(DIGEST, key)            /* the public half */  \
    F(STATE,  role, kn_role, KN_ROLE_WORKER, KN_ROLE_READ) \
    F(TEXT,   name, KN_NAME_MAX)                     \
    F(BOOL,   ephemeral)                             \
    F(U64,    made_wall_ms)                          \
    F(U64,    seen_wall_ms)   /* 0: not since the coordinator's start */

/* ---- messages */

/* M(number in Envelope.body, fields, struct, name in kiln.proto); E(…) is the same for one without fields. */
#define KN_MESSAGE_TABLE(M, E)                              \
    M(10, WORKER_HELLO,   worker_hello,   WorkerHello)      \
    M(11, HEARTBEAT,      heartbeat,      Heartbeat)        \
    M(12, SHARD_STARTED,  shard_started,  ShardStarted)     \
    M(13, SHARD_RETURNED, shard_returned, ShardReturned)    \
    M(14, SHARD_DONE,     shard_done,     ShardDone)        \
    M(15, TASK_FAILED,    task_failed,    TaskFailed)       \
    M(16, WORKER_BYE,     worker_bye,     WorkerBye)        \
    M(20, WELCOME,        welcome,        Welcome)          \
    M(21, HELLO_AGAIN,    hello_again,    HelloAgain)       \
    M(22, SHARD_GRANT,    shard_grant,    ShardGrant)       \
    M(23, SHARD_REVOKE,   shard_revoke,   ShardRevoke)      \
    M(24, IMAGE_ACK,      image_ack,      ImageAck)         \
    M(25, DRAIN_WORKER,   drain_worker,   DrainWorker)      \
    M(26, STILL_THERE,    still_there,    StillThere)       \
    M(30, IMAGE_RESULT,   image_result,   ImageResult)      \
    M(40, CLIENT_HELLO,   client_hello,   ClientHello)      \
    M(41, SUBMIT_BEGIN,   submit_begin,   SubmitBegin)      \
    M(42, SUBMIT_CHUNK,   submit_chunk,   SubmitChunk)      \
    M(43, SUBMIT_SEAL,    submit_seal,    SubmitSeal)       \
    M(44, REPLY,          reply,          Reply)            \
    M(45, BATCH_QUERY,    batch_query,    BatchQuery)       \
    M(46, BATCH_LIST,     batch_list,     BatchList)        \
    E(47, WORKERS_QUERY,  workers_query,  WorkersQuery)     \
    M(48, WORKER_LIST,    worker_list,    WorkerList)       \
    E(49, MODELS_QUERY,   models_query,   ModelsQuery)      \
    M(50, MODEL_LIST,     model_list,     ModelList)        \
    M(51, BATCH_COMMAND,  batch_command,  BatchCommand)     \
    M(52, WORKER_COMMAND, worker_command, WorkerCommand)    \
    M(53, RESULTS_QUERY,  results_query,  ResultsQuery)     \
    M(54, RESULTS_REPLY,  results_reply,  ResultsReply)     \
    M(55, TASKS_QUERY,    tasks_query,    TasksQuery)       \
    M(56, TASKS_REPLY,    tasks_reply,    TasksReply)       \
    M(60, OBJECT_GET,     object_get,     ObjectGet)        \
    M(61, OBJECT_REPLY,   object_reply,   ObjectReply)      \
    E(70, FARM_QUERY,     farm_query,     FarmQuery)        \
    M(71, FARM_STATUS,    farm_status,    FarmStatus)       \
    M(72, EXPLAIN_QUERY,  explain_query,  ExplainQuery)     \
    M(73, EXPLAIN_REPLY,  explain_reply,  ExplainReply)     \
    E(80, REPAIR_COMMAND, repair_command, RepairCommand)    \
    M(81, REPAIR_REPLY,   repair_reply,   RepairReply)      \
    M(90, PROBE,          probe,          Probe)            \
    M(91, PROBED,         probed,         Probed)           \
    E(92, PICTURES_WANTED, pictures_wanted, PicturesWanted) \
    M(110, PICTURE_REPORT, picture_report, PictureReport)   \
    M(120, ENROL,         enrol,          Enrol)            \
    M(121, ENROLLED,      enrolled,       Enrolled)         \
    M(122, TOKEN_NEW,     token_new,      TokenNew)         \
    M(123, TOKEN_REMOVE,  token_remove,   TokenRemove)      \
    E(124, TOKENS_QUERY,  tokens_query,   TokensQuery)      \
    M(125, TOKEN_LIST,    token_list,     TokenList)        \
    E(126, KEYS_QUERY,    keys_query,     KeysQuery)        \
    M(127, KEY_LIST,      key_list,       KeyList)          \
    M(128, KEY_REMOVE,    key_remove,     KeyRemove)        \
    E(129, DATA_HELLO,    data_hello,     DataHello)

/* From workers. */

/* A value of a hello that this side does not know costs that value, and not the hello: only what names the worker,
 * its process and its class must be right. */
#define KN_FIELDS_WORKER_HELLO(F)                    \
    F(NAME,  worker,      KN_NAME_MAX)               \
    F(TEXT,  name_base,   KN_NAME_MAX)    /* "": a person chose the name */ \
    F(ID_OR_NONE, machine, has_machine)              \
    F(BOOL,  named_by_farm)               /* with name_base: a Welcome gave the name */ \
    F(BOOL,  answers)                     /* it answers StillThere */ \
    F(CUT,   host,        KN_HOST_MAX)               \
    F(CUT,   device,      KN_DEVICE_MAX)             \
    F(CUT,   device_uuid, KN_DEVICE_MAX)  /* "" when it has none */ \
    F(NAME,  backend,     KN_BACKEND_MAX) /* the backend class */ \
    F(CUT,   engine,      KN_NAME_MAX)               \
    F(ID,    instance)                               \
    F(U32,   pid)                                    \
    F(CLAMP, credit,    1, KN_SHARDS_PER_WORKER_MAX) \
    F(CLAMP, batch_max, 1, KN_SHARD_TASKS_MAX)       \
    F(BOOL,  died_of_memory)                         \
    F(KNOWN, model_info, models, models, model_count, KN_MODELS_PER_WORKER_MAX) \
    F(KNOWN, held_shard, held, held, held_count, KN_SHARDS_PER_WORKER_MAX * 4) \
    F(NAMES, features, feature_count, KN_FEATURES_MAX) /* none: those of KN_FEATURES_BEFORE */ \
    F(BOOL,  probes)                      /* it answers Probe */

#define KN_FIELDS_HEARTBEAT(F)                       \
    F(U64,   shard)             /* running now; 0: none */ \
    F(ID_IF, batch, s->shard != 0)                   \
    F(U32,   step)                                   \
    F(U32,   steps)                                  \
    F(U32,   tasks)                                  \
    F(U32,   progress_age_ms)   /* since the engine last gave a sign of life; 0 when idle */ \
    F(U32,   waiting)           /* shards held that have not begun */ \
    F(FLOAT, images_per_s)      /* over the last minute */ \
    F(BOOL,  draining)                               \
    F(DIGEST_OR_NONE, model_sha256, has_model)       \
    F(PART_OR_NONE,   readings, readings)            \
    F(U64,   answer)            /* the question of the last StillThere; 0: none */ \
    F(U32,   minibatch)         /* images that the step is of */ \
    F(TEXT,  loading, KN_NAME_MAX) /* the model that it reads into memory; "" for none */ \
    F(U64,   loading_bytes)

#define KN_FIELDS_SHARD_STARTED(F)                   \
    F(U64, shard)                                    \
    F(U64, term)

#define KN_FIELDS_SHARD_RETURNED(F)                  \
    F(U64,  shard)                                   \
    F(U64,  term)                                    \
    F(BOOL, out_of_memory)                           \
    F(S32,  code)   /* KN_EUNSUPPORTED: it cannot read or do it, now or later; 0: not now */ \
    F(CUT,  reason, KN_REASON_MAX)

#define KN_FIELDS_SHARD_DONE(F)                      \
    F(U64, shard)                                    \
    F(U64, term)                                     \
    F(U32, render_ms)                                \
    F(U32, images)

#define KN_FIELDS_TASK_FAILED(F)                     \
    F(ID,    batch)                                  \
    F(TASK,  task)                                   \
    F(U64,   shard)                                  \
    F(U64,   term)                                   \
    F(ERROR, code)                                   \
    F(TEXT,  reason, KN_REASON_MAX)

#define KN_FIELDS_WORKER_BYE(F)                      \
    F(TEXT, reason, KN_REASON_MAX)

#define KN_FIELDS_IMAGE_RESULT(F)                    \
    F(ID,     batch)                                 \
    F(TASK,   task)                                  \
    F(U32,    attempt)                               \
    F(U32,    render_ms)                             \
    F(U64,    shard)                                 \
    F(U64,    term)                                  \
    F(DIGEST, sha256)                                \
    F(DIGEST, pixels_sha256)                         \
    F(BOOL,   flat)                                  \
    F(TEXT,   worker,  KN_NAME_MAX)                  \
    F(NAME,   backend, KN_BACKEND_MAX)               \
    F(TEXT,   engine,  KN_NAME_MAX)                  \
    F(BYTES,  ticket, ticket_len) /* of the grant */

/* To workers; clients get a Welcome too. */

#define KN_FIELDS_WELCOME(F)                         \
    F(U64,   term)                                   \
    F(RANGE, heartbeat_ms, 1, 3600000)               \
    F(RANGE, silence_ms,   1, 3600000)               \
    F(RANGE, data_port,    0, 65535)                 \
    F(TEXT,  data_ipc,    KN_ENDPOINT_MAX) /* these: "" when there is none */ \
    F(TEXT,  objects_dir, 4095)                      \
    F(TEXT,  version,     KN_NAME_MAX)               \
    F(TEXT,  worker,      KN_NAME_MAX)  /* to workers: the name that it has here */ \
    F(TEXT,  default_model, KN_NAME_MAX)             \
    F(NAMES, features, feature_count, KN_FEATURES_MAX) /* of the coordinator; none: those of KN_FEATURES_BEFORE */ \
    F(BYTES, farm_key, farm_key_len) /* the public half of its key; none: it has none */

#define KN_FIELDS_HELLO_AGAIN(F)                     \
    F(TEXT, reason, KN_REASON_MAX)

#define KN_FIELDS_SHARD_GRANT(F)                     \
    F(RANGE64, shard, 1, UINT64_MAX)                 \
    F(U64,     term)                                 \
    F(U32,     attempt)                              \
    F(ID,      batch)                                \
    F(DIGEST,  model_sha256)                         \
    F(TASKS,        tasks, count, KN_SHARD_TASKS_MAX) \
    F(TASK_NUMBERS, index, tasks, count)             \
    F(BYTES,   ticket, ticket_len) /* results and hellos bring it back */

#define KN_FIELDS_SHARD_REVOKE(F)                    \
    F(U64,  shard)                                   \
    F(U64,  term)                                    \
    F(BOOL, abort) /* also when it runs */

#define KN_FIELDS_IMAGE_ACK(F)                       \
    F(ID,   batch)                                   \
    F(TASK, task)                                    \
    F(S32,  code)

#define KN_FIELDS_STILL_THERE(F)                     \
    F(U64,  question)

#define KN_FIELDS_PROBE(F)                           \
    F(U64,    probe)                                 \
    F(DIGEST, model_sha256)

#define KN_FIELDS_PROBED(F)                          \
    F(U64,  probe)                                   \
    F(S32,  code)           /* 0: the picture is well */ \
    F(TEXT, reason, KN_REASON_MAX)

#define KN_FIELDS_DRAIN_WORKER(F)                    \
    F(BOOL, exit)                                    \
    F(TEXT, reason, KN_REASON_MAX)

/* From clients. */

#define KN_FIELDS_CLIENT_HELLO(F)                    \
    F(TEXT, client, KN_NAME_MAX)

#define KN_FIELDS_SUBMIT_BEGIN(F)                    \
    F(ID,    batch)                                  \
    F(TEXT,  name,        KN_NAME_MAX)               \
    F(TEXT,  pin_backend, KN_BACKEND_MAX)            \
    F(TEXT,  request,     KN_FRAME_BYTES_MAX)        \
    F(RANGE, tasks,  1, KN_TASKS_PER_BATCH_MAX)      \
    F(RANGE, chunks, 1, KN_TASKS_PER_BATCH_MAX)      \
    F(S32,   priority)                               \
    F(MODELS_ASKED, models, model_count, KN_MODELS_PER_BATCH_MAX) \
    F(NAMES, features, feature_count, KN_FEATURES_MAX) /* that its tasks need beyond KN_FEATURES_BEFORE */ \
    F(BYTES, owner, owner_len) /* the coordinator's word: whose key submitted it; none: it came through a Unix socket */

#define KN_FIELDS_SUBMIT_CHUNK(F)                    \
    F(ID,    batch)                                  \
    F(U32,   chunk)                                  \
    F(RANGE, count, 1, KN_TASKS_PER_CHUNK_MAX)       \
    F(RANGE, part,  0, KN_CHUNK_PARTS_MAX - 1)       \
    F(RANGE, parts, 0, KN_CHUNK_PARTS_MAX) /* 0: one, this */ \
    F(BYTES, tasks, tasks_len) /* of a deflated TaskChunk: kn_chunk_unpack() validates it */

#define KN_FIELDS_SUBMIT_SEAL(F)                     \
    F(ID, batch)

#define KN_FIELDS_BATCH_QUERY(F)                     \
    F(ID_OR_NONE, batch, has_batch) /* none: all */

#define KN_FIELDS_BATCH_COMMAND(F)                   \
    F(ID,   batch)                                   \
    F(ENUM, verb, kn_batch_verb, KN_VERB_CANCEL, KN_VERB_PRIORITY) \
    F(S32,  argument)                                \
    F(BOOL, now) /* of a removal: its pictures are deleted at once */

#define KN_FIELDS_REPAIR_REPLY(F) /* what has been done */ \
    F(U64, moved) /* objects that nothing names, to the trash */ \
    F(U64, moved_bytes)                              \
    F(U64, restored) /* back from the trash: they are named */ \
    F(U64, deleted) /* from the trash, old enough */ \
    F(U64, deleted_bytes)                            \
    F(U64, strays) /* halves of pictures, by coordinators that were killed */ \
    F(U64, others) /* files that kiln did not name: left alone */

#define KN_FIELDS_WORKER_COMMAND(F)                  \
    F(TEXT, worker, KN_NAME_MAX)                     \
    F(BOOL, exit)

#define KN_FIELDS_RESULTS_QUERY(F)                   \
    F(ID,    batch)                                  \
    F(U64,   epoch)                                  \
    F(U32,   cursor)                                 \
    F(RANGE, max, 1, KN_RESULTS_PER_REPLY_MAX)

#define KN_FIELDS_TASKS_QUERY(F)                     \
    F(ID,  batch)                                    \
    F(U32, chunk)                                    \
    F(RANGE, part, 0, KN_CHUNK_PARTS_MAX - 1)

#define KN_FIELDS_OBJECT_GET(F)                      \
    F(DIGEST, sha256)                                \
    F(ID_OR_NONE, batch, has_batch) /* a batch of the asker's that names it, */ \
    F(TASK,   task)                 /* …and the task whose picture it is */

#define KN_FIELDS_PICTURE_REPORT(F) /* it is not the picture that its record tells of */ \
    F(ID,     batch)                                 \
    F(TASK,   task)                                  \
    F(DIGEST, sha256)

/* From who is not on the list of keys: the only thing that it may say. */
#define KN_FIELDS_ENROL(F)                           \
    F(BYTES, id, id_len)          /* of the token */ \
    F(BYTES, secret, secret_len)                     \
    F(TEXT,  name, KN_NAME_MAX)   /* for its key, where the token has none */ \
    F(BOOL,  chosen)              /* a person chose that name: another will not do */

#define KN_FIELDS_ENROLLED(F)                        \
    F(STATE, role, kn_role, KN_ROLE_WORKER, KN_ROLE_READ) \
    F(TEXT,  name, KN_NAME_MAX)

#define KN_FIELDS_TOKEN_NEW(F) /* the asker drew it; its secret stays there */ \
    F(BYTES,   id, id_len)                           \
    F(DIGEST,  digest)                               \
    F(ENUM,    role, kn_role, KN_ROLE_WORKER, KN_ROLE_READ) \
    F(TEXT,    name, KN_NAME_MAX)                    \
    F(BOOL,    ephemeral)                            \
    F(RANGE64, ttl_ms, 0, KN_TOKEN_TTL_MS_MAX) /* 0: for ever */ \
    F(RANGE,   uses, 1, KN_TOKEN_USES_MAX)

#define KN_FIELDS_TOKEN_REMOVE(F)                    \
    F(BYTES, id, id_len)

#define KN_FIELDS_TOKEN_LIST(F)                      \
    F(LIST, token_info, tokens, v, count, KN_TOKENS_MAX)

#define KN_FIELDS_KEY_LIST(F)                        \
    F(LIST, key_info, keys, v, count, KN_KEYS_MAX)

#define KN_FIELDS_KEY_REMOVE(F)                      \
    F(DIGEST, key)

#define KN_FIELDS_EXPLAIN_QUERY(F)                   \
    F(ID,   batch)                                   \
    F(BOOL, has_task) /* about that one; else about the batch */ \
    F(TASK, task)

/* To clients. */

#define KN_FIELDS_REPLY(F)                           \
    F(S32,  code)                                    \
    F(TEXT, text, KN_FRAME_BYTES_MAX)

#define KN_FIELDS_BATCH_LIST(F)                      \
    F(LIST, batch_status, batches, v, count, KN_BATCHES_MAX)

#define KN_FIELDS_WORKER_LIST(F)                     \
    F(LIST,  worker_status, workers, v, count, KN_WORKERS_MAX) \
    F(FLOAT, images_per_s)

#define KN_FIELDS_MODEL_LIST(F)                      \
    F(KNOWN, model_info, models, v, count, KN_WORKERS_MAX * KN_MODELS_PER_WORKER_MAX) \
    F(KNOWN, model_info, known, known, known_count, KN_KNOWN_MODELS_MAX) /* announced once; nobody who has it is there */

#define KN_FIELDS_RESULTS_REPLY(F)                   \
    F(U64,  epoch)                                   \
    F(U32,  cursor)                                  \
    F(LIST, result, results, v, count, KN_RESULTS_PER_REPLY_MAX) \
    F(PART, batch_status, status)

#define KN_FIELDS_TASKS_REPLY(F)                     \
    F(U32,   chunks)                                 \
    F(BYTES, tasks, tasks_len) /* as in SubmitChunk */ \
    F(RANGE, parts, 0, KN_CHUNK_PARTS_MAX) /* that the chunk has; 0: one */ \
    F(LIST,  model_info, models, models, model_count, KN_MODELS_PER_BATCH_MAX)

#define KN_FIELDS_OBJECT_REPLY(F)                    \
    F(DIGEST, sha256)                                \
    F(S32,    code)                                  \
    F(TEXT,   text, KN_REASON_MAX)

/* The reasons that keep the whole farm from going on; each text says what to do, and is "" where all is well. */
#define KN_FIELDS_FARM_STATUS(F)                     \
    F(TEXT, version, KN_NAME_MAX)                    \
    F(U32,  pid)            /* of the coordinator */ \
    F(U32,  workers)        /* those that are not lost */ \
    F(U64,  store_silent_ms)                         \
    F(TEXT, store_text, KN_WAIT_TEXT_MAX)            \
    F(TEXT, disk_text,  KN_WAIT_TEXT_MAX) \
    F(TEXT, store_note, KN_WAIT_TEXT_MAX) /* it answers, and something happened to it that a person should know */ \
    F(U32,  workers_fit)    /* that may be connected at once; 0: not known */

#define KN_FIELDS_EXPLAIN_REPLY(F)                   \
    F(PART, batch_status, status)                    \
    F(TEXT, task_state, KN_NAME_MAX) /* of a task: a word */ \
    F(TEXT, text, KN_WAIT_TEXT_MAX)  /* of a task: why it is so, and when it will be done */ \
    F(U32,  charges)                                 \
    F(U32,  tried)        /* attempts at the task; of a batch: tasks that needed more than one */ \
    F(LIST, attempt, attempts, v, count, KN_ATTEMPTS_PER_REPLY_MAX) /* in order; the newest of each task */ \
    F(U32,  left_out)     /* of a batch: tasks with attempts that are not listed */

/* ---- the structs, made from the rows */

#define KN_MEMBER(kind, ...) KN_MEMBER_##kind(__VA_ARGS__)
#define KN_MEMBER_U32(n)                         uint32_t n;
#define KN_MEMBER_U64(n)                         uint64_t n;
#define KN_MEMBER_S32(n)                         int n;
#define KN_MEMBER_S64(n)                         int64_t n;
#define KN_MEMBER_BOOL(n)                        bool n;
#define KN_MEMBER_FLOAT(n)                       float n;
#define KN_MEMBER_RANGE(n, min, max)             uint32_t n;
#define KN_MEMBER_RANGE64(n, min, max)           uint64_t n;
#define KN_MEMBER_TASK(n)                        uint32_t n;
#define KN_MEMBER_ERROR(n)                       int n;
#define KN_MEMBER_ENUM(n, type, first, last)     enum type n;
#define KN_MEMBER_STATE(n, type, first, last)    enum type n;
#define KN_MEMBER_TEXT(n, max)                   const char *n;
#define KN_MEMBER_NAME(n, max)                   const char *n;
#define KN_MEMBER_CLAMP(n, min, max)             uint32_t n;
#define KN_MEMBER_CUT(n, max)                    const char *n;
#define KN_MEMBER_NAMES(n, count, max)           const char **n; size_t count;
#define KN_MEMBER_BYTES(n, len)                  const uint8_t *n; size_t len;
#define KN_MEMBER_ID(n)                          kn_id n;
#define KN_MEMBER_DIGEST(n)                      kn_digest n;
#define KN_MEMBER_ID_OR_NONE(n, has)             bool has; kn_id n;
#define KN_MEMBER_DIGEST_OR_NONE(n, has)         bool has; kn_digest n;
#define KN_MEMBER_ID_IF(n, condition)            kn_id n;
#define KN_MEMBER_DIGEST_IF(n, condition)        kn_digest n;
#define KN_MEMBER_PART(part, n)                  struct kn_##part n;
#define KN_MEMBER_PART_OR_NONE(part, n)          struct kn_##part n;
#define KN_MEMBER_LIST(part, n, v, count, max)   struct kn_##part *v; size_t count;
#define KN_MEMBER_KNOWN(part, n, v, count, max)  struct kn_##part *v; size_t count;
#define KN_MEMBER_NUMBERS(n, count, max)         uint32_t *n; size_t count;
#define KN_MEMBER_MODELS_ASKED(n, count, max)    struct kn_model_info *n; size_t count;
#define KN_MEMBER_TASKS(n, count, max)           struct kn_task *n; size_t count;
#define KN_MEMBER_TASK_NUMBERS(n, tasks, count)  uint32_t *n;

#define KN_PART_STRUCT(ID, name, pb)             struct kn_##name { KN_FIELDS_##ID(KN_MEMBER) };
#define KN_MSG_STRUCT(number, ID, name, pb)      struct kn_##name { KN_FIELDS_##ID(KN_MEMBER) };
#define KN_MSG_NUMBER(number, ID, name, pb)      KN_MSG_##ID = number,
#define KN_MSG_MEMBER(number, ID, name, pb)      struct kn_##name name;
#define KN_MSG_NOTHING(number, ID, name, pb)

KN_PART_TABLE(KN_PART_STRUCT)
KN_MESSAGE_TABLE(KN_MSG_STRUCT, KN_MSG_NOTHING)

enum kn_msg_type { KN_MESSAGE_TABLE(KN_MSG_NUMBER, KN_MSG_NUMBER) };

struct kn_msg {
    enum kn_msg_type type;
    uint64_t request; /* the number that a client gave, and its answer repeats; 0: none */
    union { KN_MESSAGE_TABLE(KN_MSG_MEMBER, KN_MSG_NOTHING) } u;
};

/* clang-format on */

#endif
