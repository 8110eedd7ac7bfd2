/* Messages as plain, validated C structs. protobuf-c is seen in codec.c alone.
 *
 * A decoded message owns everything in it (one block, freed by kn_msg_destroy): pointers inside live as long
 * as the message. For encoding, pointers are borrowed during the call. Decoding checks version, every length
 * against base/limits.h, UTF-8 of strings, sizes of digests and ids, enum ranges and finite floats: what
 * comes out is safe to use. KN_EPROTO (malformed), KN_EVERSION, KN_ELIMIT. */
#ifndef KN_PROTO_CODEC_H
#define KN_PROTO_CODEC_H

#include <stdbool.h>
#include <stdint.h>
#include "base/buf.h"
#include "base/err.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/spec.h"
#include "base/states.h"

#define KN_PROTO_VERSION 1

enum kn_msg_type { /* the field numbers of Envelope.body */
                   KN_MSG_WORKER_HELLO = 10,
                   KN_MSG_HEARTBEAT = 11,
                   KN_MSG_SHARD_STARTED = 12,
                   KN_MSG_SHARD_RETURNED = 13,
                   KN_MSG_SHARD_DONE = 14,
                   KN_MSG_TASK_FAILED = 15,
                   KN_MSG_WORKER_BYE = 16,
                   KN_MSG_WELCOME = 20,
                   KN_MSG_HELLO_AGAIN = 21,
                   KN_MSG_SHARD_GRANT = 22,
                   KN_MSG_SHARD_REVOKE = 23,
                   KN_MSG_IMAGE_ACK = 24,
                   KN_MSG_DRAIN_WORKER = 25,
                   KN_MSG_IMAGE_RESULT = 30,
                   KN_MSG_CLIENT_HELLO = 40,
                   KN_MSG_SUBMIT_BEGIN = 41,
                   KN_MSG_SUBMIT_CHUNK = 42,
                   KN_MSG_SUBMIT_SEAL = 43,
                   KN_MSG_REPLY = 44,
                   KN_MSG_BATCH_QUERY = 45,
                   KN_MSG_BATCH_LIST = 46,
                   KN_MSG_WORKERS_QUERY = 47,
                   KN_MSG_WORKER_LIST = 48,
                   KN_MSG_MODELS_QUERY = 49,
                   KN_MSG_MODEL_LIST = 50,
                   KN_MSG_BATCH_COMMAND = 51,
                   KN_MSG_WORKER_COMMAND = 52,
                   KN_MSG_RESULTS_QUERY = 53,
                   KN_MSG_RESULTS_REPLY = 54,
                   KN_MSG_TASKS_QUERY = 55,
                   KN_MSG_TASKS_REPLY = 56,
                   KN_MSG_OBJECT_GET = 60,
                   KN_MSG_OBJECT_REPLY = 61,
};

enum kn_batch_verb {
    KN_VERB_CANCEL = 1,
    KN_VERB_PAUSE = 2,
    KN_VERB_RESUME = 3,
    KN_VERB_RETRY = 4,    /* failed tasks again */
    KN_VERB_REMOVE = 5,   /* a finished batch leaves; its objects are collected */
    KN_VERB_PRIORITY = 6, /* argument */
};

struct kn_held_shard {
    kn_id batch;
    uint64_t shard, term;
    uint32_t *tasks;
    size_t task_count;
};
struct kn_worker_hello {
    const char *worker, *host, *device, *device_uuid, *backend,
        *engine; /* device_uuid: "" when it has none */
    kn_id instance;
    uint32_t pid, credit, batch_max;
    struct kn_model_info *models;
    size_t model_count;
    struct kn_held_shard *held;
    size_t held_count;
};
struct kn_readings {                    /* of a device; 0: not known */
    uint64_t memory_used, memory_total; /* bytes */
    uint32_t temperature_c, power_mw, sm_mhz, memory_mhz;
};
struct kn_heartbeat {
    uint64_t shard; /* 0: idle */
    kn_id batch;
    uint32_t step, steps, tasks, progress_age_ms, waiting;
    float images_per_s;
    bool draining;
    bool has_model;
    kn_digest model_sha256;
    struct kn_readings readings;
};
struct kn_shard_ref { /* shard_started */
    uint64_t shard, term;
};
struct kn_shard_returned {
    uint64_t shard, term;
    bool out_of_memory;
};
struct kn_shard_done {
    uint64_t shard, term;
    uint32_t render_ms, images;
};
struct kn_task_failed {
    kn_id batch;
    uint32_t task;
    uint64_t shard, term;
    int code;
    const char *reason;
};
struct kn_welcome {
    uint64_t term;
    uint32_t heartbeat_ms, silence_ms, data_port;
    const char *data_ipc, *objects_dir, *version; /* "" when there is none */
};
struct kn_shard_grant {
    uint64_t shard, term;
    uint32_t attempt;
    kn_id batch;
    kn_digest model_sha256;
    uint32_t *index;
    struct kn_task *tasks;
    size_t count;
};
struct kn_shard_revoke {
    uint64_t shard, term;
    bool abort;
};
struct kn_image_ack {
    kn_id batch;
    uint32_t task;
    int code;
};
struct kn_drain_worker {
    bool exit;
    const char *reason;
};
struct kn_image_result {
    kn_id batch;
    uint32_t task, attempt, render_ms;
    uint64_t shard, term;
    kn_digest sha256, pixels_sha256;
    bool flat;
    const char *worker, *backend, *engine;
};
struct kn_submit_begin {
    kn_id batch;
    const char *name, *pin_backend, *request;
    uint32_t tasks, chunks;
    int priority;
    struct kn_model_info *models; /* all-zero sha256: whatever the farm has under that name */
    size_t model_count;
};
struct kn_submit_chunk {
    kn_id batch;
    uint32_t chunk, count;
    const uint8_t *tasks; /* a deflated TaskChunk: kn_chunk_unpack() validates it */
    size_t tasks_len;
};
struct kn_reply {
    int code;
    const char *text;
};
struct kn_batch_ref { /* batch_query (has_batch false: all), submit_seal */
    bool has_batch;
    kn_id batch;
};
struct kn_batch_status {
    kn_id batch;
    const char *name, *request;
    enum kn_batch_state state;
    uint32_t total, done, failed, cancelled, queued, running;
    float images_per_s, images_per_s_mean;
    int64_t eta_ms; /* -1: unknown */
    uint64_t created_wall_ms, finished_wall_ms;
    int priority;
};
struct kn_batch_list {
    struct kn_batch_status *v;
    size_t count;
};
struct kn_worker_status {
    const char *worker, *host, *device, *device_uuid, *backend, *model, *engine;
    enum kn_worker_state state;
    bool has_batch;
    kn_id batch;
    uint32_t step, steps, tasks, done, failed, last_seen_ms, pid;
    float images_per_s;
    struct kn_readings readings;
};
struct kn_worker_list {
    struct kn_worker_status *v;
    size_t count;
    float images_per_s;
};
struct kn_model_list {
    struct kn_model_info *v;
    size_t count;
};
struct kn_batch_command {
    kn_id batch;
    enum kn_batch_verb verb;
    int argument;
};
struct kn_worker_command {
    const char *worker;
    bool exit;
};
struct kn_results_query {
    kn_id batch;
    uint64_t epoch;
    uint32_t cursor, max;
};
struct kn_result {
    uint32_t index, attempt, render_ms;
    enum kn_result_status status;
    kn_digest sha256, pixels_sha256;
    const char *worker, *backend, *engine, *error;
    bool flat;
};
struct kn_results_reply {
    uint64_t epoch;
    uint32_t cursor;
    struct kn_result *v;
    size_t count;
    struct kn_batch_status status;
};
struct kn_tasks_query {
    kn_id batch;
    uint32_t chunk;
};
struct kn_tasks_reply {
    uint32_t chunks;
    const uint8_t *tasks;
    size_t tasks_len;
    struct kn_model_info *models;
    size_t model_count;
};
struct kn_object_ref { /* object_get; object_reply adds code and text */
    kn_digest sha256;
    int code;
    const char *text;
};

struct kn_msg {
    enum kn_msg_type type;
    uint64_t request; /* clients' number; 0: none */
    union {
        struct kn_worker_hello worker_hello;
        struct kn_heartbeat heartbeat;
        struct kn_shard_ref shard_started;
        struct kn_shard_returned shard_returned;
        struct kn_shard_done shard_done;
        struct kn_task_failed task_failed;
        struct kn_reply worker_bye; /* text: the reason */
        struct kn_welcome welcome;
        struct kn_reply hello_again; /* text: the reason */
        struct kn_shard_grant shard_grant;
        struct kn_shard_revoke shard_revoke;
        struct kn_image_ack image_ack;
        struct kn_drain_worker drain_worker;
        struct kn_image_result image_result;
        struct kn_reply client_hello; /* text: the client's name */
        struct kn_submit_begin submit_begin;
        struct kn_submit_chunk submit_chunk;
        struct kn_batch_ref submit_seal;
        struct kn_reply reply;
        struct kn_batch_ref batch_query;
        struct kn_batch_list batch_list;
        struct kn_worker_list worker_list;
        struct kn_model_list model_list;
        struct kn_batch_command batch_command;
        struct kn_worker_command worker_command;
        struct kn_results_query results_query;
        struct kn_results_reply results_reply;
        struct kn_tasks_query tasks_query;
        struct kn_tasks_reply tasks_reply;
        struct kn_object_ref object_get, object_reply;
    } u;
};

/* Decodes one frame; *out is the caller's to destroy. */
KN_MUST_USE int kn_msg_decode(const void *data, size_t len, struct kn_msg **out, struct kn_err *err);
void kn_msg_destroy(struct kn_msg *m); /* one made by kn_msg_decode; NULL is fine */
/* Appends the encoded frame. KN_ELIMIT when it is over KN_FRAME_BYTES_MAX. */
KN_MUST_USE int kn_msg_encode(const struct kn_msg *m, struct kn_buf *out, struct kn_err *err);
const char *kn_msg_name(enum kn_msg_type type); /* "shard_grant", for logs */

/* A batch's tasks travel and rest as deflated TaskChunks of at most KN_TASKS_PER_CHUNK_MAX tasks. Packing
 * asserts resolved tasks. */
KN_MUST_USE int kn_chunk_pack(const struct kn_task *tasks, size_t count, struct kn_buf *out,
                              struct kn_err *err);
struct kn_chunk {
    struct kn_task *v; /* strings live in the chunk */
    size_t count;
    void *block;
};
/* Inflates at most KN_CHUNK_BYTES_MAX, validates each task (kn_task_check, all fields set, model_index <
 * model_count). */
KN_MUST_USE int kn_chunk_unpack(const void *data, size_t len, size_t model_count, struct kn_chunk *out,
                                struct kn_err *err);
void kn_chunk_fini(struct kn_chunk *c);

#endif
