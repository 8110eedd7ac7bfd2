/* The codec: every message there and back, and what it refuses. Hostile frames are written by hand, field by
 * field, since the encoder does not make them. */
#include "tests/unit/check.h"

#include <math.h>

#include "tests/unit/proto_messages.h"

static void encode(const struct kn_msg *m, struct kn_buf *out) {
    struct kn_err err = {0};
    kn_buf_init(out, KN_FRAME_BYTES_MAX);
    CHECK_MSG(kn_msg_encode(m, out, &err) == 0, "%s", err.text);
}

TEST(every_message_comes_back_as_it_went) {
    for (size_t i = 0; i < proto_type_count; i++) {
        struct kn_msg m, *back = NULL;
        struct kn_buf b, again;
        struct kn_err err = {0};
        proto_example(proto_types[i], &m);
        encode(&m, &b);
        CHECK_MSG(kn_msg_decode(b.data, b.len, &back, &err) == 0, "%s: %s", kn_msg_name(m.type), err.text);
        proto_check_same(&m, back);
        encode(back, &again);
        CHECK_U64(again.len, b.len);
        CHECK_MEM(again.data, b.data, b.len);
        kn_buf_fini(&b);
        kn_buf_fini(&again);
        kn_msg_destroy(back);
    }
}

/* Recorded frames: a change of the tables that moves, drops or adds a byte is seen here, even where encoder
 * and decoder agree on it. */
TEST(frames_recorded_by_earlier_programs_come_back_byte_for_byte) {
    static char line[4096];
    size_t recorded = 0;
    bool is_there[256] = {false}; /* by the number of the message */
    FILE *f = fopen(KILN_SOURCE "/tests/unit/proto_frames.txt", "r");
    CHECK(f != NULL);
    while (fgets(line, sizeof line, f)) {
        if (line[0] == '#') continue;
        char *hex = strchr(line, ' ');
        CHECK(hex != NULL);
        *hex++ = '\0';
        hex[strcspn(hex, "\n")] = '\0';
        uint8_t frame[sizeof line / 2];
        size_t len = strlen(hex) / 2;
        CHECK_INT(kn_unhex(hex, frame, len), 0);
        struct kn_msg *m = NULL;
        struct kn_err err = {0};
        struct kn_buf again;
        CHECK_MSG(kn_msg_decode(frame, len, &m, &err) == 0, "%s: %s", line, err.text);
        CHECK_STR(kn_msg_name(m->type), line);
        encode(m, &again);
        CHECK_U64(again.len, len);
        CHECK_MEM(again.data, frame, len);
        kn_buf_fini(&again);
        enum kn_msg_type m_type = m->type;
        kn_msg_destroy(m);
        recorded += !is_there[m_type];
        is_there[m_type] = true;
    }
    fclose(f);
    for (size_t i = 0; i < proto_type_count; i++) {
        if (is_there[proto_types[i]]) continue;
        struct kn_msg m;
        struct kn_buf b;
        proto_example(proto_types[i], &m);
        encode(&m, &b);
        printf("proto_frames.txt lacks this line:\n%s ", kn_msg_name(m.type));
        for (size_t k = 0; k < b.len; k++) printf("%02x", (unsigned)(uint8_t)b.data[k]);
        printf("\n");
        kn_buf_fini(&b);
    }
    CHECK_U64(recorded, proto_type_count);
}

/* A newer farm's state costs that value, not the whole reply. */
TEST(an_unknown_state_in_a_reply_is_passed_on_as_its_number) {
    struct kn_msg m, *back;
    struct kn_buf b;
    struct kn_err err = {0};
    proto_example(KN_MSG_BATCH_LIST, &m);
    m.u.batch_list.v[0].state = (enum kn_batch_state)9;
    m.u.batch_list.v[0].wait = (enum kn_wait)77;
    encode(&m, &b);
    CHECK_MSG(kn_msg_decode(b.data, b.len, &back, &err) == 0, "%s", err.text);
    CHECK_INT(back->u.batch_list.v[0].state, 9);
    CHECK_INT(back->u.batch_list.v[0].wait, 77);
    CHECK_INT(back->u.batch_list.v[1].state, m.u.batch_list.v[1].state);
    kn_buf_fini(&b);
    kn_msg_destroy(back);
}

TEST(every_message_has_a_name_of_its_own) {
    for (size_t i = 0; i < proto_type_count; i++) {
        CHECK(strcmp(kn_msg_name(proto_types[i]), "?") != 0);
        for (size_t k = 0; k < i; k++)
            CHECK(strcmp(kn_msg_name(proto_types[i]), kn_msg_name(proto_types[k])) != 0);
    }
    CHECK_STR(kn_msg_name((enum kn_msg_type)9999), "?");
}

/* A message that says nothing optional is as good as one that says everything. */
TEST(empty_ids_mean_none_where_none_is_allowed) {
    struct kn_msg q = {.type = KN_MSG_BATCH_QUERY}, beat = {.type = KN_MSG_HEARTBEAT}, *back = NULL;
    struct kn_buf b;
    encode(&q, &b);
    CHECK_INT(kn_msg_decode(b.data, b.len, &back, NULL), 0);
    CHECK(!back->u.batch_query.has_batch);
    kn_msg_destroy(back);
    kn_buf_fini(&b);
    encode(&beat, &b);
    CHECK_INT(kn_msg_decode(b.data, b.len, &back, NULL), 0);
    CHECK(!back->u.heartbeat.has_model && back->u.heartbeat.shard == 0);
    kn_msg_destroy(back);
    kn_buf_fini(&b);
}

TEST(a_frame_cut_anywhere_is_refused_or_decodes_to_something_valid) {
    for (size_t i = 0; i < proto_type_count; i++) {
        struct kn_msg m;
        struct kn_buf b;
        proto_example(proto_types[i], &m);
        encode(&m, &b);
        for (size_t cut = 0; cut < b.len; cut++) {
            char *copy = malloc(cut ? cut : 1); /* exactly so long: a sanitizer sees a read behind it */
            memcpy(copy, b.data, cut);
            struct kn_msg *back = NULL;
            struct kn_err err = {0};
            int rc = kn_msg_decode(copy, cut, &back, &err);
            free(copy);
            CHECK((rc == 0) == (back != NULL));
            if (rc != 0) CHECK(err.code == rc && err.text[0]);
            if (back) { /* the cut fell between two fields, and the rest has its defaults */
                struct kn_buf again;
                encode(back, &again);
                kn_buf_fini(&again);
            }
            kn_msg_destroy(back);
        }
        kn_buf_fini(&b);
    }
}

/* ---- hostile frames */

struct frame {
    uint8_t data[1 << 16];
    size_t len;
};

static void put_varint(struct frame *f, uint64_t v) {
    do {
        uint8_t low = v & 0x7f;
        v >>= 7;
        f->data[f->len++] = (uint8_t)(low | (v ? 0x80 : 0));
    } while (v);
}
static void put_number(struct frame *f, unsigned field, uint64_t v) {
    put_varint(f, field << 3);
    put_varint(f, v);
}
static void put_bytes(struct frame *f, unsigned field, const void *p, size_t n) {
    put_varint(f, field << 3 | 2);
    put_varint(f, n);
    if (n) memcpy(f->data + f->len, p, n);
    f->len += n;
}
static void put_float(struct frame *f, unsigned field, float v) {
    put_varint(f, field << 3 | 5);
    memcpy(f->data + f->len, &v, 4);
    f->len += 4;
}

/* An envelope of this version around the body of a message. */
static int decode_body(enum kn_msg_type type, const struct frame *body, struct kn_err *err) {
    static struct frame f;
    struct kn_msg *m = NULL;
    f.len = 0;
    put_number(&f, 1, KN_PROTO_VERSION);
    put_bytes(&f, (unsigned)type, body->data, body->len);
    *err = (struct kn_err){0};
    int rc = kn_msg_decode(f.data, f.len, &m, err);
    kn_msg_destroy(m);
    return rc;
}

#define REFUSED(type, body, want, word)                                                                      \
    do {                                                                                                     \
        struct kn_err refused_err;                                                                           \
        CHECK_INT(decode_body((type), (body), &refused_err), (want));                                        \
        CHECK_INT(refused_err.code, (want));                                                                 \
        CHECK_MSG(strstr(refused_err.text, (word)), "[%s]", refused_err.text);                               \
    } while (0)

TEST(another_version_is_refused_by_name) {
    struct frame f = {.len = 0}, empty = {.len = 0};
    struct kn_msg *m = NULL;
    struct kn_err err = {0};
    put_number(&f, 1, KN_PROTO_VERSION_MAX + 1);
    put_bytes(&f, KN_MSG_WORKERS_QUERY, empty.data, 0);
    CHECK_INT(kn_msg_decode(f.data, f.len, &m, &err), KN_EVERSION);
    CHECK(m == NULL && strstr(err.text, "version 3"));
}

TEST(an_unknown_message_and_no_message_are_refused) {
    struct frame f = {.len = 0};
    struct kn_msg *m = NULL;
    put_number(&f, 1, KN_PROTO_VERSION);
    CHECK_INT(kn_msg_decode(f.data, f.len, &m, NULL), KN_EPROTO);
    put_bytes(&f, 999, "x", 1);
    CHECK_INT(kn_msg_decode(f.data, f.len, &m, NULL), KN_EPROTO);
    CHECK_INT(kn_msg_decode("", 0, &m, NULL), KN_EVERSION);
    CHECK_INT(kn_msg_decode("\xff\xff\xff\xff", 4, &m, NULL), KN_EPROTO);
}

TEST(a_frame_over_the_limit_is_refused_unread) {
    struct kn_msg *m = NULL;
    CHECK_INT(kn_msg_decode("", (size_t)KN_FRAME_BYTES_MAX + 1, &m, NULL), KN_ELIMIT);
}

static const uint8_t id[16] = {1}, digest[32] = {1};

/* A ModelList of one model, as a program of this or of an earlier version writes it. */
static void put_model_list(struct frame *f, enum kn_sampler sampler, const char *scheduler, bool karras) {
    struct frame model = {.len = 0}, models = {.len = 0};
    put_bytes(&model, 1, "m", 1);
    put_bytes(&model, 2, digest, 32);
    put_number(&model, 3, (uint64_t)sampler);
    put_number(&model, 4, KN_SCHEDULE_NORMAL);
    put_number(&model, 5, 20);
    put_float(&model, 6, 7);
    put_number(&model, 7, 64);
    put_number(&model, 8, 64);
    put_number(&model, 9, 8);
    if (scheduler) put_bytes(&model, 11, scheduler, strlen(scheduler));
    if (karras) put_number(&model, 12, 1);
    put_bytes(&models, 1, model.data, model.len);
    f->len = 0;
    put_number(f, 1, KN_PROTO_VERSION);
    put_bytes(f, KN_MSG_MODEL_LIST, models.data, models.len);
}

static struct kn_msg *decode_model_list(const struct frame *f) {
    struct kn_msg *m = NULL;
    struct kn_err err = {0};
    CHECK_MSG(kn_msg_decode(f->data, f->len, &m, &err) == 0, "%s", err.text);
    CHECK_INT(m->type, KN_MSG_MODEL_LIST);
    CHECK_U64(m->u.model_list.count, 1);
    return m;
}

/* A reader that does not know field 11 finds Euler in field 3, which it chose by itself for such a folder. */
TEST(a_scheduler_that_kiln_has_not_is_euler_to_an_older_reader_and_none_to_this_one) {
    static struct frame f;
    struct kn_buf again;
    put_model_list(&f, KN_SAMPLER_EULER, "DDPMScheduler", true);
    struct kn_msg *m = decode_model_list(&f);
    CHECK_INT(m->u.model_list.v[0].defaults.sampler, KN_SAMPLER_UNSET);
    CHECK_STR(m->u.model_list.v[0].scheduler, "DDPMScheduler");
    CHECK(m->u.model_list.v[0].defaults.karras);
    encode(m, &again);
    CHECK_U64(again.len, f.len);
    CHECK_MEM(again.data, f.data, f.len);
    kn_buf_fini(&again);
    kn_msg_destroy(m);
}

TEST(an_older_program_that_names_no_scheduler_means_the_sampler_that_it_says) {
    static struct frame f;
    put_model_list(&f, KN_SAMPLER_DPMPP_2M, NULL, false);
    struct kn_msg *m = decode_model_list(&f);
    CHECK_INT(m->u.model_list.v[0].defaults.sampler, KN_SAMPLER_DPMPP_2M);
    CHECK_STR(m->u.model_list.v[0].scheduler, "");
    CHECK(!m->u.model_list.v[0].defaults.karras);
    kn_msg_destroy(m);
}

TEST(a_model_whose_schedulers_name_is_too_long_or_no_text_is_left_out_of_a_list) {
    static struct frame f;
    char name[KN_NAME_MAX + 2];
    struct kn_msg *m = NULL;
    memset(name, 'x', sizeof name);
    name[KN_NAME_MAX + 1] = '\0';
    const char *const bad[] = {name, "\xff"};
    for (int i = 0; i < 2; i++) {
        put_model_list(&f, KN_SAMPLER_EULER, bad[i], false);
        CHECK_INT(kn_msg_decode(f.data, f.len, &m, NULL), 0);
        CHECK_U64(m->u.model_list.count, 0);
        kn_msg_destroy(m);
    }
}

TEST(ids_and_digests_of_another_length_are_refused) {
    for (size_t n = 0; n <= 40; n++) {
        uint8_t any[40] = {0};
        struct frame ack = {.len = 0}, get = {.len = 0}, beat = {.len = 0};
        struct kn_err err;
        put_bytes(&ack, 1, any, n);
        CHECK_INT(decode_body(KN_MSG_IMAGE_ACK, &ack, &err), n == 16 ? 0 : KN_EPROTO);
        put_bytes(&get, 1, any, n);
        CHECK_INT(decode_body(KN_MSG_OBJECT_GET, &get, &err), n == 32 ? 0 : KN_EPROTO);
        put_bytes(&beat, 9, any, n);
        CHECK_INT(decode_body(KN_MSG_HEARTBEAT, &beat, &err), n == 32 || n == 0 ? 0 : KN_EPROTO);
    }
}

TEST(a_heartbeat_that_names_a_shard_names_its_batch) {
    struct frame f = {.len = 0};
    put_number(&f, 1, 5);
    REFUSED(KN_MSG_HEARTBEAT, &f, KN_EPROTO, "heartbeat: batch");
}

TEST(readings_that_no_device_has_are_refused) {
    static const struct {
        unsigned field;
        uint64_t most;
        const char *words;
    } table[] = {
        {1, KN_DEVICE_BYTES_MAX, "readings.memory"},
        {2, KN_DEVICE_BYTES_MAX, "readings.memory"},
        {3, 1000, "readings.temperature_c"},
        {4, 1000000000, "readings.power_mw"},
        {5, 1000000, "readings.sm_mhz"},
        {6, 1000000, "readings.memory_mhz"},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct frame good = {.len = 0}, bad = {.len = 0}, beat = {.len = 0}, wrong = {.len = 0};
        struct kn_err err;
        put_number(&good, table[i].field, table[i].most);
        put_bytes(&beat, 11, good.data, good.len);
        CHECK_INT(decode_body(KN_MSG_HEARTBEAT, &beat, &err), 0);
        put_number(&bad, table[i].field, table[i].most + 1);
        put_bytes(&wrong, 11, bad.data, bad.len);
        REFUSED(KN_MSG_HEARTBEAT, &wrong, KN_EPROTO, table[i].words);
    }
}

TEST(floats_that_are_not_finite_are_refused) {
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < 3; i++) {
        struct frame beat = {.len = 0}, list = {.len = 0}, model = {.len = 0}, models = {.len = 0};
        put_float(&beat, 7, bad[i]);
        REFUSED(KN_MSG_HEARTBEAT, &beat, KN_EPROTO, "images_per_s: not finite");
        put_float(&list, 2, bad[i]);
        REFUSED(KN_MSG_WORKER_LIST, &list, KN_EPROTO, "not finite");
        put_bytes(&model, 1, "m", 1);
        put_bytes(&model, 2, digest, 32);
        put_number(&model, 3, 1);
        put_number(&model, 4, 1);
        put_number(&model, 5, 20);
        put_float(&model, 6, bad[i]);
        put_number(&model, 7, 64);
        put_number(&model, 8, 64);
        put_number(&model, 9, 8);
        put_bytes(&models, 1, id, 16);
        put_number(&models, 3, 1);
        put_number(&models, 4, 1);
        put_bytes(&models, 7, model.data, model.len);
        REFUSED(KN_MSG_SUBMIT_BEGIN, &models, KN_EPROTO, "models.cfg: not finite");
    }
}

TEST(text_that_is_not_utf8_is_refused) {
    const char *const bad[] = {"\xff", "\xc0\x80", "\xed\xa0\x80", "\xf5\x80\x80\x80", "abc\xe2\x82"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct frame f = {.len = 0};
        put_bytes(&f, 1, bad[i], strlen(bad[i]));
        REFUSED(KN_MSG_WORKER_BYE, &f, KN_EPROTO, "worker_bye: reason: not UTF-8");
    }
}

TEST(text_over_its_limit_is_refused) {
    static struct frame f;
    static char text[KN_REASON_MAX + 1];
    memset(text, 'x', sizeof text);
    f.len = 0;
    put_bytes(&f, 1, text, KN_REASON_MAX);
    struct kn_err err;
    CHECK_INT(decode_body(KN_MSG_WORKER_BYE, &f, &err), 0);
    f.len = 0;
    put_bytes(&f, 1, text, KN_REASON_MAX + 1);
    REFUSED(KN_MSG_WORKER_BYE, &f, KN_ELIMIT, "reason: too long");
}

struct task_fields {
    size_t prompt_len;
    float cfg;
    uint64_t steps, width, height, sampler, schedule;
};
static const struct task_fields good_task = {3, 7, 20, 512, 512, 3, 1};

static void put_grant(struct frame *f, const struct task_fields *t, unsigned tasks, unsigned indexes) {
    static char prompt[KN_PROMPT_BYTES_MAX + 8];
    static struct frame task;
    memset(prompt, 'p', sizeof prompt);
    task.len = 0;
    put_bytes(&task, 1, prompt, t->prompt_len);
    put_float(&task, 6, t->cfg);
    put_number(&task, 7, t->steps);
    put_number(&task, 8, t->width);
    put_number(&task, 9, t->height);
    put_number(&task, 10, t->sampler);
    put_number(&task, 11, t->schedule);
    f->len = 0;
    put_number(f, 1, 1);
    put_bytes(f, 4, id, 16);
    put_bytes(f, 5, digest, 32);
    for (unsigned i = 0; i < indexes; i++) put_number(f, 6, i);
    for (unsigned i = 0; i < tasks; i++) put_bytes(f, 7, task.data, task.len);
}

TEST(a_grant_with_a_task_out_of_range_is_refused) {
    static struct frame f;
    struct kn_err err;
    put_grant(&f, &good_task, 1, 1);
    CHECK_INT(decode_body(KN_MSG_SHARD_GRANT, &f, &err), 0);
    const struct {
        struct task_fields t;
        int code;
        const char *word;
    } bad[] = {
        {{KN_PROMPT_BYTES_MAX + 1, 7, 20, 512, 512, 3, 1}, KN_ELIMIT, "prompt: too long"},
        {{3, NAN, 20, 512, 512, 3, 1}, KN_EPROTO, "cfg"},
        {{3, INFINITY, 20, 512, 512, 3, 1}, KN_EPROTO, "cfg"},
        {{3, -1, 20, 512, 512, 3, 1}, KN_EPROTO, "cfg"},
        {{3, 7, 0, 512, 512, 3, 1}, KN_EPROTO, "steps"},
        {{3, 7, 1001, 512, 512, 3, 1}, KN_EPROTO, "steps"},
        {{3, 7, 20, 513, 512, 3, 1}, KN_EPROTO, "width"},
        {{3, 7, 20, 512, 0, 3, 1}, KN_EPROTO, "height"},
        {{3, 7, 20, 1 << 20, 512, 3, 1}, KN_EPROTO, "width"},
        {{3, 7, 20, 512, 512, 0, 1}, KN_EPROTO, "sampler"},
        {{3, 7, 20, 512, 512, 99, 1}, KN_EUNSUPPORTED, "sampler"},
        {{3, 7, 20, 512, 512, 3, 0}, KN_EPROTO, "schedule"},
        {{3, 7, 20, 512, 512, 3, 3}, KN_EUNSUPPORTED, "schedule"},
        {{3, 7, 20, 512, 512, 1, 2}, KN_EPROTO, "schedule"}, /* Karras means nothing with DDIM */
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        put_grant(&f, &bad[i].t, 1, 1);
        REFUSED(KN_MSG_SHARD_GRANT, &f, bad[i].code, bad[i].word);
    }
}

TEST(a_grant_has_one_index_a_task_and_not_too_many) {
    static struct frame f;
    put_grant(&f, &good_task, 0, 0);
    REFUSED(KN_MSG_SHARD_GRANT, &f, KN_EPROTO, "tasks");
    put_grant(&f, &good_task, 2, 1);
    REFUSED(KN_MSG_SHARD_GRANT, &f, KN_EPROTO, "tasks");
    put_grant(&f, &good_task, KN_SHARD_TASKS_MAX + 1, KN_SHARD_TASKS_MAX + 1);
    REFUSED(KN_MSG_SHARD_GRANT, &f, KN_ELIMIT, "tasks: too many");
    put_grant(&f, &good_task, 1, 0);
    put_number(&f, 6, KN_TASKS_PER_BATCH_MAX);
    REFUSED(KN_MSG_SHARD_GRANT, &f, KN_EPROTO, "index");
}

TEST(a_task_number_past_any_batch_is_refused) {
    struct frame failed = {.len = 0}, ack = {.len = 0}, result = {.len = 0};
    put_bytes(&failed, 1, id, 16);
    put_number(&failed, 2, KN_TASKS_PER_BATCH_MAX);
    REFUSED(KN_MSG_TASK_FAILED, &failed, KN_EPROTO, "task: out of range");
    put_bytes(&ack, 1, id, 16);
    put_number(&ack, 2, KN_TASKS_PER_BATCH_MAX);
    REFUSED(KN_MSG_IMAGE_ACK, &ack, KN_EPROTO, "task: out of range");
    put_bytes(&result, 1, id, 16);
    put_number(&result, 2, KN_TASKS_PER_BATCH_MAX);
    REFUSED(KN_MSG_IMAGE_RESULT, &result, KN_EPROTO, "task: out of range");
}

TEST(a_failure_says_an_error) {
    struct frame f = {.len = 0};
    put_bytes(&f, 1, id, 16);
    REFUSED(KN_MSG_TASK_FAILED, &f, KN_EPROTO, "code: not an error");
}

TEST(a_hello_needs_a_name_and_a_class) {
    const char *const names[] = {"worker", "backend"};
    for (int left_out = 0; left_out < 2; left_out++) {
        struct frame f = {.len = 0};
        if (left_out != 0) put_bytes(&f, 1, "w", 1);
        put_bytes(&f, 2, id, 16);
        if (left_out != 1) put_bytes(&f, 6, "sim-1", 5);
        REFUSED(KN_MSG_WORKER_HELLO, &f, KN_EPROTO, names[left_out]);
    }
}

/* A hello of this body, decoded. */
static struct kn_msg *decode_hello(const struct frame *body) {
    static struct frame f;
    struct kn_msg *m = NULL;
    struct kn_err err = {0};
    f.len = 0;
    put_number(&f, 1, KN_PROTO_VERSION);
    put_bytes(&f, KN_MSG_WORKER_HELLO, body->data, body->len);
    CHECK_MSG(kn_msg_decode(f.data, f.len, &m, &err) == 0, "%s", err.text);
    return m;
}

static void put_hello(struct frame *f) {
    f->len = 0;
    put_bytes(f, 1, "w", 1);
    put_bytes(f, 2, id, 16);
    put_bytes(f, 6, "sim-1", 5);
}

/* Each of these lost the whole hello, and with it the worker. */
TEST(promise_versions_an_unknown_value_of_a_hello_costs_that_value) {
    static struct frame f, model;
    static char text[KN_DEVICE_MAX + 8];
    memset(text, 'x', sizeof text);
    put_hello(&f);
    put_bytes(&f, 3, text, KN_HOST_MAX + 1);
    put_bytes(&f, 5, "\xff", 1);
    put_number(&f, 8, 1000);
    put_number(&f, 9, 100000);
    for (int i = 0; i < 3;
         i++) { /* a sampler of a later kiln, a size that no model has, and one that is as it should be */
        model.len = 0;
        put_bytes(&model, 1, "m", 1);
        put_bytes(&model, 2, digest, 32);
        put_number(&model, 3, i == 0 ? 25 : 3);
        put_number(&model, 4, 1);
        put_number(&model, 5, 20);
        put_float(&model, 6, 7);
        put_number(&model, 7, i == 1 ? 1 << 20 : 64);
        put_number(&model, 8, 64);
        put_number(&model, 9, 8);
        put_bytes(&f, 10, model.data, model.len);
    }
    put_bytes(&f, 11, "", 0); /* a shard of no batch */
    put_number(&f, 999, 5);   /* a field of a later kiln */
    struct kn_msg *m = decode_hello(&f);
    const struct kn_worker_hello *h = &m->u.worker_hello;
    CHECK_U64(strlen(h->host), KN_HOST_MAX);
    CHECK_STR(h->device, "");
    CHECK_INT(h->credit, KN_SHARDS_PER_WORKER_MAX);
    CHECK_INT(h->batch_max, KN_SHARD_TASKS_MAX);
    CHECK_U64(h->model_count, 2);
    CHECK_INT(h->models[0].defaults.sampler, KN_SAMPLER_UNSET);
    CHECK_STR(h->models[0].scheduler, "of a later kiln");
    CHECK_INT(h->models[1].defaults.sampler, KN_SAMPLER_EULER);
    CHECK_U64(h->held_count, 0);
    kn_msg_destroy(m);
}

TEST(promise_versions_more_models_and_features_than_there_is_room_for_cost_those_behind) {
    static struct frame f, model;
    char name[32], longer[KN_NAME_MAX + 2];
    memset(longer, 'y', sizeof longer);
    put_hello(&f);
    model.len = 0;
    put_bytes(&model, 1, "m", 1);
    put_bytes(&model, 2, digest, 32);
    put_number(&model, 3, 3);
    put_number(&model, 4, 1);
    put_number(&model, 5, 20);
    put_number(&model, 7, 64);
    put_number(&model, 8, 64);
    put_number(&model, 9, 8);
    for (int i = 0; i <= KN_MODELS_PER_WORKER_MAX; i++) put_bytes(&f, 10, model.data, model.len);
    put_bytes(&f, 18, longer, KN_NAME_MAX + 1);
    put_bytes(&f, 18, "\xff", 1);
    put_bytes(&f, 18, "", 0);
    for (int i = 0; i <= KN_FEATURES_MAX; i++) {
        snprintf(name, sizeof name, "feature.%d", i);
        put_bytes(&f, 18, name, strlen(name));
    }
    struct kn_msg *m = decode_hello(&f);
    CHECK_U64(m->u.worker_hello.model_count, KN_MODELS_PER_WORKER_MAX);
    CHECK_U64(m->u.worker_hello.feature_count, KN_FEATURES_MAX);
    CHECK_STR(m->u.worker_hello.features[0], "feature.0");
    kn_msg_destroy(m);
}

/* Recorded from the programs of before features (proto_frames.txt): what they know stands in one place, for ever. */
TEST(promise_versions_who_lists_no_features_has_those_of_before) {
    const char *names[KN_FEATURES_MAX], *unknown;
    const char *const before[] = {
        "sampler.ddim",     "sampler.pndm",    "sampler.euler",  "sampler.euler_ancestral",
        "sampler.dpmpp_2m", "schedule.normal", "schedule.karras"};
    CHECK_U64(kn_features_of_peer(NULL, 0), KN_FEATURES_BEFORE);
    CHECK_U64(kn_features_read(before, 7, &unknown), KN_FEATURES_BEFORE);
    CHECK(unknown == NULL);
    CHECK_U64(kn_features() & KN_FEATURES_BEFORE, KN_FEATURES_BEFORE);
    size_t n = kn_features_list(kn_features(), names);
    CHECK(n >= 7 && n <= KN_FEATURES_MAX);
    CHECK_U64(kn_features_of_peer(names, n), kn_features());
    const char *const later[] = {"sampler.euler", "sampler.of_tomorrow"};
    CHECK_U64(kn_features_read(later, 2, &unknown), KN_FEATURE_SAMPLER(KN_SAMPLER_EULER));
    CHECK_STR(unknown, "sampler.of_tomorrow");
    for (size_t i = 0; i < KN_SAMPLER_COUNT; i++)
        CHECK((kn_features() & KN_FEATURE_SAMPLER(kn_samplers[i])) != 0);
}

/* It was forgotten in silence: other pixels than were asked for, under the same number. */
TEST(promise_versions_a_task_with_a_field_of_a_later_kiln_is_refused) {
    static struct frame f, task;
    struct kn_garbled g;
    task.len = f.len = 0;
    put_bytes(&task, 1, "p", 1);
    put_float(&task, 6, 7);
    put_number(&task, 7, 20);
    put_number(&task, 8, 64);
    put_number(&task, 9, 64);
    put_number(&task, 10, 3);
    put_number(&task, 11, 1);
    put_number(&task, 12, 2);
    put_number(&f, 1, 77);
    put_number(&f, 2, 5);
    put_bytes(&f, 4, id, 16);
    put_bytes(&f, 5, digest, 32);
    put_number(&f, 6, 0);
    put_bytes(&f, 7, task.data, task.len);
    REFUSED(KN_MSG_SHARD_GRANT, &f, KN_EUNSUPPORTED, "a field: of a later kiln");
    /* So much is known of it all the same, so that it can be handed back. */
    static struct frame whole;
    whole.len = 0;
    put_number(&whole, 1, KN_PROTO_VERSION);
    put_bytes(&whole, KN_MSG_SHARD_GRANT, f.data, f.len);
    kn_msg_look(whole.data, whole.len, &g);
    CHECK_INT(g.type, KN_MSG_SHARD_GRANT);
    CHECK_U64(g.shard, 77);
    CHECK_U64(g.term, 5);
    kn_msg_look("\xff\xff\xff\xff", 4, &g);
    CHECK_INT(g.type, 0);
}

/* Programs of before features refuse version 2, in words: so they never take such a batch for one of theirs. */
TEST(promise_versions_a_batch_that_needs_more_than_before_is_of_version_2) {
    struct kn_msg m, *back;
    struct kn_buf b;
    proto_example(KN_MSG_SUBMIT_BEGIN, &m);
    encode(&m, &b);
    CHECK_INT(b.data[1], 2);
    CHECK_INT(kn_msg_decode(b.data, b.len, &back, NULL), 0);
    kn_msg_destroy(back);
    kn_buf_fini(&b);
    m.u.submit_begin.feature_count = 0;
    encode(&m, &b);
    CHECK_INT(b.data[1], 1);
    kn_buf_fini(&b);
}

TEST(enumerations_out_of_range_are_refused) {
    for (uint64_t v = 0; v < 9; v++) {
        struct frame f = {.len = 0};
        struct kn_err err;
        put_bytes(&f, 1, id, 16);
        put_number(&f, 2, v);
        bool known = v >= KN_VERB_CANCEL && v <= KN_VERB_PRIORITY;
        CHECK_INT(decode_body(KN_MSG_BATCH_COMMAND, &f, &err), known ? 0 : KN_EPROTO);
    }
}

/* A short frame that would unpack to a hundred times its size is bounded by the message's arena and by the
 * counts. */
TEST(many_empty_parts_are_refused_and_cost_a_bounded_memory) {
    size_t n = KN_FRAME_BYTES_MAX / 2 - 64;
    uint8_t *data = malloc(KN_FRAME_BYTES_MAX);
    size_t len = 0;
    struct frame head = {.len = 0};
    put_number(&head, 1, KN_PROTO_VERSION);
    put_varint(&head, KN_MSG_BATCH_LIST << 3 | 2);
    put_varint(&head, n * 2);
    memcpy(data, head.data, head.len);
    len = head.len;
    for (size_t i = 0; i < n; i++) {
        data[len++] = 1 << 3 | 2;
        data[len++] = 0;
    }
    struct kn_msg *m = NULL;
    struct kn_err err = {0};
    int rc = kn_msg_decode(data, len, &m, &err);
    free(data);
    CHECK(rc != 0 && m == NULL);
}

TEST(a_message_over_the_limit_is_not_encoded) {
    struct kn_msg m;
    struct kn_buf b;
    struct kn_err err = {0};
    char *text = malloc((size_t)KN_FRAME_BYTES_MAX + 1);
    memset(text, 'x', KN_FRAME_BYTES_MAX);
    text[KN_FRAME_BYTES_MAX] = '\0';
    m = (struct kn_msg){.type = KN_MSG_REPLY, .u.reply = {0, text}};
    kn_buf_init(&b, (size_t)2 * KN_FRAME_BYTES_MAX);
    int rc = kn_msg_encode(&m, &b, &err);
    free(text);
    kn_buf_fini(&b);
    CHECK_INT(rc, KN_ELIMIT);
}
