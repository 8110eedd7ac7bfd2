/* A coordinator under peers that say anything, in any order: workers, clients and strangers, before their hello and
 * after it, on both sockets. Each message of proto/messages.h is sent, as it should be, with numbers, names and ids of
 * what the farm really has in it, or damaged; and bytes that are none. What must hold: the farm's invariants
 * (farm_check), nothing for a sanitizer to say, and whoever asks afterwards is answered, on each connection.
 *
 * The bytes are steps: an operation, then a few bytes for its choices. Sockets are libzmq's own, since those of
 * proto/wire.h send nothing that is wrong; the store is in memory. One thread beside libuv's pool. */
#include <string.h>
#include <unistd.h>
#include <uv.h>
#include <zmq.h>

#include "base/clock.h"
#include "base/features.h"
#include "base/log.h"
#include "coordinator/recover.h"
#include "coordinator/server.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/proto_messages.h"
#include "tests/unit/store_memory.h"

#define STEPS_MAX 200
#define FRAME_MAX 65536
#define ANSWER_MS 30000
#define CONTROLS 4 /* two workers, a client, a stranger */
#define SOCKETS (CONTROLS + 2)

static const kn_id batches[] = {{0xa, 1}, {0xb, 2}, {0xc, 3}, {0xd, 4}};
static const char *const names[] = {"w0", "w1", "m", "class-1"};

static struct {
    void *zmq; /* of all inputs */
    uv_loop_t loop;
    char dir[64], endpoint[96], data[104];
    struct store_disk *disk;
    struct server *s;
    void *sockets[SOCKETS]; /* the last two to the data socket */
    uint64_t shard, asked;  /* of the last grant; the last request */
    uint8_t ticket[KN_FRAME_BYTES_MAX / 64];
    size_t ticket_len;
} talk;

struct input {
    const uint8_t *data;
    size_t left;
};

static uint8_t byte(struct input *in) {
    if (in->left == 0) return 0;
    in->left--;
    return *in->data++;
}

/* ---- sockets */

static void connect_socket(int i) {
    static const int none = 0;
    static uint64_t connections; /* a routing id has eight bytes, and the first is not 0 */
    uint64_t id = ++connections << 8 | 1;
    if (talk.sockets[i]) zmq_close(talk.sockets[i]);
    talk.sockets[i] = zmq_socket(talk.zmq, ZMQ_DEALER);
    FUZZ_CHECK(talk.sockets[i] && zmq_setsockopt(talk.sockets[i], ZMQ_LINGER, &none, sizeof none) == 0);
    FUZZ_CHECK(zmq_setsockopt(talk.sockets[i], ZMQ_ROUTING_ID, &id, sizeof id) == 0);
    FUZZ_CHECK(zmq_connect(talk.sockets[i], i < CONTROLS ? talk.endpoint : talk.data) == 0);
}

static void send_bytes(int i, const void *data, size_t len, bool more) {
    if (zmq_send(talk.sockets[i], data, len, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0)) < 0) {
        /* there is no room: it is lost */
    }
}

/* The answers that are there; true when the one to `request` is among them. */
static bool hear(int i, uint64_t request) {
    bool answered = false;
    zmq_msg_t z;
    zmq_msg_init(&z);
    while (zmq_msg_recv(&z, talk.sockets[i], ZMQ_DONTWAIT) >= 0) {
        struct kn_msg *m = NULL;
        struct kn_err err = {0};
        if (!zmq_msg_more(&z) || i >= CONTROLS) {
            int rc = kn_msg_decode(zmq_msg_data(&z), zmq_msg_size(&z), &m, &err);
            FUZZ_CHECK(rc == 0 || i >= CONTROLS); /* behind an answer on the data socket are bytes */
        }
        if (m && m->type == KN_MSG_SHARD_GRANT) {
            talk.shard = m->u.shard_grant.shard;
            talk.ticket_len =
                m->u.shard_grant.ticket_len < sizeof talk.ticket ? m->u.shard_grant.ticket_len : 0;
            memcpy(talk.ticket, m->u.shard_grant.ticket, talk.ticket_len);
        }
        answered |= m && request && m->request == request;
        kn_msg_destroy(m);
    }
    zmq_msg_close(&z);
    return answered;
}

static void turn(void) {
    for (int i = 0; i < 3; i++) uv_run(&talk.loop, UV_RUN_NOWAIT);
    for (int i = 0; i < SOCKETS; i++) hear(i, 0);
}

static void send_message(int i, const struct kn_msg *m) {
    struct kn_buf b;
    kn_buf_init(&b, KN_FRAME_BYTES_MAX);
    FUZZ_CHECK(kn_msg_encode(m, &b, NULL) == 0);
    send_bytes(i, b.data, b.len, false);
    kn_buf_fini(&b);
}

/* Until the farm has worked off all that this connection said, and has answered. */
static void ask(int i) {
    struct kn_msg m = {.type = i < CONTROLS ? KN_MSG_FARM_QUERY : KN_MSG_OBJECT_GET,
                       .request = UINT64_C(1) << 40 | ++talk.asked};
    uint64_t end = kn_clock_ms() + ANSWER_MS;
    send_message(i, &m);
    while (!hear(i, m.request)) {
        if (kn_clock_ms() >= end) fprintf(stderr, "connection %d is not answered\n", i);
        FUZZ_CHECK(kn_clock_ms() < end);
        uv_run(&talk.loop, UV_RUN_NOWAIT);
        usleep(100);
    }
}

/* ---- messages */

static size_t put_varint(uint8_t *out, uint64_t v) {
    size_t n = 0;
    for (; v > 127; v >>= 7) out[n++] = (uint8_t)(v | 128);
    out[n++] = (uint8_t)v;
    return n;
}

static bool take_varint(const uint8_t *p, size_t len, size_t *at, uint64_t *v) {
    *v = 0;
    for (int shift = 0; *at < len && shift < 64; shift += 7) {
        uint8_t b = p[(*at)++];
        *v |= (uint64_t)(b & 127) << shift;
        if (b < 128) return true;
    }
    return false;
}

static uint64_t any_number(struct input *in, uint64_t was) {
    uint8_t n = byte(in);
    uint64_t known[] = {talk.shard, talk.s->store->term, 0, 1, 2, 3, 20, 64, UINT32_MAX, UINT64_MAX};
    return n < 100 ? known[n % (sizeof known / sizeof known[0])] : was;
}

/* Copies a message in protobuf's form, with what the farm knows in place of ids, and here and there of numbers and
 * texts. `depth` 0: the Envelope. */
static size_t vary(const uint8_t *p, size_t len, uint8_t *out, size_t max, struct input *in, int depth) {
    size_t at = 0, n = 0;
    uint64_t tag, v;
    while (at < len && take_varint(p, len, &at, &tag)) {
        if (n + 64 > max) return n;
        n += put_varint(out + n, tag);
        if ((tag & 7) == 0) {
            if (!take_varint(p, len, &at, &v)) return n;
            n += put_varint(out + n, depth == 0 ? v : any_number(in, v));
        } else if ((tag & 7) == 2) {
            static uint8_t inner[2][FRAME_MAX];
            if (!take_varint(p, len, &at, &v) || v > len - at) return n;
            const uint8_t *field = p + at;
            size_t size = (size_t)v;
            uint8_t how = size == 16 || size == 32 ? 0 : byte(in);
            if (depth == 0) {
                size = vary(field, size, inner[0], FRAME_MAX, in, 1);
                field = inner[0];
            } else if (size == 16) {
                field = batches[byte(in) % 4];
            } else if (size == 32) {
                memset(inner[1], 0, 32);
                inner[1][0] = byte(in) & 1 ? 7 : field[0]; /* 7: the model's */
                field = inner[1];
            } else if (how < 100) {
                field = (const uint8_t *)names[how % 4];
                size = strlen(names[how % 4]);
            } else if (how < 140 && talk.ticket_len) {
                field = talk.ticket;
                size = talk.ticket_len;
            }
            if (size + 32 > max - n) return n;
            n += put_varint(out + n, size);
            memcpy(out + n, field, size);
            n += size;
            at += (size_t)v;
        } else {
            size_t size = (tag & 7) == 5 ? 4 : 8;
            if (size > len - at) return n;
            memcpy(out + n, p + at, size);
            n += size;
            at += size;
        }
    }
    return n;
}

/* One of the protocol's messages, in whichever direction it goes. `damage`: bits of it are turned, or its end lacks. */
static void any_message(int i, struct input *in, bool damage) {
    static uint8_t frame[FRAME_MAX];
    struct kn_msg m;
    struct kn_buf b;
    proto_example(proto_types[byte(in) % proto_type_count], &m);
    if (m.request == 0) m.request = 1;
    kn_buf_init(&b, KN_FRAME_BYTES_MAX);
    if (kn_msg_encode(&m, &b, NULL) == 0) {
        size_t n = vary((const uint8_t *)b.data, b.len, frame, sizeof frame, in, 0);
        for (int k = damage ? 1 + byte(in) % 4 : 0; k > 0 && n > 0; k--)
            frame[(byte(in) | (size_t)byte(in) << 8) % n] ^= (uint8_t)(1u << (byte(in) % 8));
        if (damage && byte(in) % 4 == 0) n = n * byte(in) / 256;
        bool more = byte(in) % 2 && i >= CONTROLS; /* bytes behind it */
        send_bytes(i, frame, n, more);
        if (more) send_bytes(i, b.data, b.len, false);
    }
    kn_buf_fini(&b);
}

static struct kn_model_info model(void) {
    struct kn_model_info m = {.name = "m", .size_multiple = 8};
    m.sha256[0] = 7;
    m.defaults = (struct kn_defaults){KN_SAMPLER_EULER, KN_SCHEDULE_NORMAL, 20, 7, 64, 64, false};
    return m;
}

static void good_hello(int i, struct input *in) {
    const char *features[KN_FEATURES_MAX];
    struct kn_model_info models[] = {model()};
    struct kn_msg m = {.type = KN_MSG_WORKER_HELLO};
    m.u.worker_hello = (struct kn_worker_hello){.worker = names[byte(in) % 2],
                                                .host = "h",
                                                .device = "d",
                                                .backend = "class-1",
                                                .engine = "kiln 0",
                                                .credit = 2,
                                                .batch_max = 8,
                                                .models = models,
                                                .model_count = 1,
                                                .features = features,
                                                .feature_count = kn_features_list(kn_features(), features),
                                                .probes = byte(in) % 2};
    m.u.worker_hello.instance[0] = (uint8_t)(1 + i);
    send_message(i, &m);
}

static void good_submission(int i, struct input *in) {
    static char prompt[] = "p", none[] = "";
    struct kn_model_info models[] = {model()};
    struct kn_task tasks[8];
    uint8_t which = byte(in) % 4;
    uint32_t count = 1 + byte(in) % 8;
    struct kn_msg m = {.type = KN_MSG_SUBMIT_BEGIN, .request = 1};
    m.u.submit_begin = (struct kn_submit_begin){.name = "n",
                                                .pin_backend = "",
                                                .request = "{}",
                                                .tasks = count,
                                                .chunks = 1,
                                                .models = models,
                                                .model_count = 1};
    memcpy(m.u.submit_begin.batch, batches[which], sizeof(kn_id));
    send_message(i, &m);
    for (uint32_t t = 0; t < count; t++)
        tasks[t] = (struct kn_task){.prompt = prompt,
                                    .negative = none,
                                    .seed = t,
                                    .cfg = 7,
                                    .steps = 2,
                                    .width = 64,
                                    .height = 64,
                                    .sampler = KN_SAMPLER_EULER,
                                    .schedule = KN_SCHEDULE_NORMAL,
                                    .set = KN_SET_ALL};
    struct kn_buf b;
    kn_buf_init(&b, KN_CHUNK_BYTES_MAX);
    FUZZ_CHECK(kn_chunk_pack(tasks, count, &b, NULL) == 0);
    m = (struct kn_msg){.type = KN_MSG_SUBMIT_CHUNK, .request = 2};
    m.u.submit_chunk =
        (struct kn_submit_chunk){.count = count, .tasks = (const uint8_t *)b.data, .tasks_len = b.len};
    memcpy(m.u.submit_chunk.batch, batches[which], sizeof(kn_id));
    send_message(i, &m);
    kn_buf_fini(&b);
    m = (struct kn_msg){.type = KN_MSG_SUBMIT_SEAL, .request = 3};
    memcpy(m.u.submit_seal.batch, batches[which], sizeof(kn_id));
    send_message(i, &m);
}

static void step(struct input *in) {
    uint8_t op = byte(in), i = op / 16 % SOCKETS;
    switch (op % 16) {
    case 0:
        good_hello(i % 2, in);
        break;
    case 1:
        good_submission(i % CONTROLS, in);
        break;
    case 2:
        turn();
        break;
    case 3: { /* bytes that are no message, in one frame or two */
        size_t n = byte(in);
        if (n > in->left) n = in->left;
        send_bytes(i, in->data, n, op & 128);
        if (op & 128) send_bytes(i, in->data, n / 2, false);
        in->data += n;
        in->left -= n;
        break;
    }
    case 4: /* it leaves, whatever it has said, and comes again under another routing id */
        if (op & 128) turn();
        connect_socket(i);
        break;
    case 5:
        ask(i);
        break;
    case 6:
    case 7:
        any_message(i, in, true);
        break;
    default:
        any_message(i, in, false);
        break;
    }
}

/* ---- a farm for each input */

static void begin(void) {
    struct kn_err err = {0};
    struct store *store;
    if (!talk.zmq) {
        talk.zmq = zmq_ctx_new();
        kn_log_init("fuzz", KN_LOG_ERROR);
    }
    talk.shard = talk.ticket_len = 0;
    strcpy(talk.dir, access("/dev/shm", W_OK) == 0 ? "/dev/shm/kiln-fuzz-XXXXXX" : "/tmp/kiln-fuzz-XXXXXX");
    FUZZ_CHECK(mkdtemp(talk.dir) != NULL);
    snprintf(talk.endpoint, sizeof talk.endpoint, "ipc://%s/s", talk.dir);
    snprintf(talk.data, sizeof talk.data, "%s-data", talk.endpoint);
    FUZZ_CHECK(uv_loop_init(&talk.loop) == 0);
    struct server_options o = {
        .dir = talk.dir, .listen = {talk.endpoint}, .listen_count = 1, .no_scrub = true};
    talk.disk = store_disk_create();
    FUZZ_CHECK(talk.disk && store_memory_open(talk.disk, &talk.loop, &store, &err) == 0);
    FUZZ_CHECK(server_create(&talk.loop, &o, store, &talk.s, &err) == 0);
    FUZZ_CHECK(server_recover(talk.s, &err) == 0 && server_listen(talk.s, &err) == 0);
    for (int i = 0; i < SOCKETS; i++) connect_socket(i);
}

static void end(void) {
    char command[96];
    for (int i = 0; i < SOCKETS; i++) {
        zmq_close(talk.sockets[i]);
        talk.sockets[i] = NULL;
    }
    server_close(talk.s);
    while (uv_run(&talk.loop, UV_RUN_NOWAIT)) usleep(200);
    server_destroy(talk.s);
    FUZZ_CHECK(uv_loop_close(&talk.loop) == 0);
    store_disk_destroy(talk.disk);
    snprintf(command, sizeof command, "rm -r %s", talk.dir);
    FUZZ_CHECK(system(command) == 0);
}

int kn_fuzz(const uint8_t *data, size_t size) {
    struct input in = {data, size};
    begin();
    for (int steps = 0; in.left > 0 && steps < STEPS_MAX; steps++) step(&in);
    for (int i = 0; i < SOCKETS; i++) ask(i);
    farm_check(talk.s->farm);
    end();
    return 0;
}
